"""Ways to deal examples out to clients, and to make clients see the world differently.

Every function is pure: the same arguments give the same clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from rootlet_server.errors import PopulationError
from rootlet_server.simulation.population import ArrayPopulation

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from rootlet_server.simulation.population import Examples, Population

    Rows = npt.NDArray[np.int64]

_SHIFT_STREAM = 13


def iid(x: npt.ArrayLike, y: npt.ArrayLike, *, clients: int, seed: int) -> ArrayPopulation:
    """Examples dealt out at random; sizes differ by one at most."""
    count = len(np.asarray(y))
    _check_clients(clients, count)
    order = np.random.default_rng(seed).permutation(count)
    return _population(x, y, np.array_split(order, clients))


def dirichlet(
    x: npt.ArrayLike, y: npt.ArrayLike, *, clients: int, alpha: float, seed: int
) -> ArrayPopulation:
    """Each class dealt out in shares from ``Dir(alpha)`` over the clients (Hsu et al. 2019).

    Small ``alpha`` gives few classes a client; some clients may get nothing.
    """
    labels = np.asarray(y)
    _check_clients(clients, len(labels))
    if not alpha > 0:
        raise PopulationError(f"alpha {alpha}: must be positive; 0.1 to 1 is usual")
    rng = np.random.default_rng(seed)
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        counts = rng.multinomial(len(rows), rng.dirichlet(np.full(clients, alpha)))
        for part, own in zip(parts, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
            part.append(own)
    return _population(x, y, [np.concatenate(part) for part in parts])


def by_label(
    x: npt.ArrayLike, y: npt.ArrayLike, *, clients: int, shards_each: int, seed: int
) -> ArrayPopulation:
    """Sorted by label, cut into shards, ``shards_each`` a client (McMahan et al. 2017)."""
    labels = np.asarray(y)
    _check_clients(clients * shards_each, len(labels))
    shards = np.array_split(np.argsort(labels, kind="stable"), clients * shards_each)
    order = np.random.default_rng(seed).permutation(len(shards))
    dealt = order.reshape(clients, shards_each)
    return _population(x, y, [np.concatenate([shards[s] for s in own]) for own in dealt])


def by_user(x: npt.ArrayLike, y: npt.ArrayLike, users: npt.ArrayLike) -> ArrayPopulation:
    """One client for each different value of ``users`` [N], in sorted order."""
    names = np.asarray(users)
    if len(names) != len(np.asarray(y)):
        raise PopulationError(f"users has {len(names)} values for {len(np.asarray(y))} examples")
    _, numbers = np.unique(names, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    return _population(x, y, np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Shifted:
    """The same clients, each of whom sees its inputs changed in a way of its own.

    Attributes:
        population: the clients.
        rotation: pictures are turned by an angle drawn once a client from +-this many degrees,
            about their middle; x or ``picture`` must be [H, W].
        noise: normal noise is added, of a deviation drawn once a client from 0 to this.
        style: inputs become ``contrast x + brightness``, drawn once a client as ``exp(+-style)``
            and ``+-style``.
        picture: shape to which a flat x is brought before it is turned.
        seed: of the draws.
    """

    population: Population
    rotation: float = 0.0
    noise: float = 0.0
    style: float = 0.0
    picture: tuple[int, int] | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.population)

    def examples(self, client: int) -> Examples:
        """The client's examples as it sees them, float32."""
        x, y = self.population.examples(client)
        rng = np.random.default_rng([self.seed, _SHIFT_STREAM, client])
        angle, deviation = rng.uniform(-1, 1) * self.rotation, rng.uniform() * self.noise
        contrast, brightness = np.exp(rng.uniform(-1, 1) * self.style), rng.uniform(-1, 1)
        if not len(x):
            return x, y
        seen = np.asarray(x, np.float32)
        if self.rotation:
            seen = self._turned(seen, angle)
        seen = contrast * seen + brightness * self.style
        return (seen + deviation * rng.standard_normal(seen.shape)).astype(np.float32), y

    def _turned(self, x: npt.NDArray[np.float32], angle: float) -> npt.NDArray[np.float32]:
        pictures = x if self.picture is None else x.reshape(len(x), *self.picture)
        if pictures.ndim < 3:
            raise PopulationError(
                f"rotation: examples have shape {x.shape[1:]}; name the picture's, picture=(H, W)"
            )
        turned = ndimage.rotate(pictures, angle, axes=(-2, -1), reshape=False, order=1)
        return np.asarray(turned, np.float32).reshape(x.shape)


def _population(x: npt.ArrayLike, y: npt.ArrayLike, parts: Sequence[Rows]) -> ArrayPopulation:
    sizes: Any = [len(part) for part in parts]
    return ArrayPopulation(
        x=np.asarray(x),
        y=np.asarray(y),
        rows=np.concatenate(parts).astype(np.int64),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


def _check_clients(clients: int, examples: int) -> None:
    if not 1 <= clients <= examples:
        raise PopulationError(
            f"{clients} clients or shards for {examples} examples; at least one example each is "
            "needed. SampledPopulation draws with replacement"
        )
