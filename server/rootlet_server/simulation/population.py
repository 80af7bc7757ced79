"""Populations: who the clients are and what each one has.

A population is a length and a function from a client's number to its examples. What is held in
memory is up to it: arrays with a table of rows, or nothing but a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rootlet_runtime.errors import DataError
from rootlet_runtime.examples import check_examples
from rootlet_server.errors import PopulationError

if TYPE_CHECKING:
    import numpy.typing as npt

    from rootlet_runtime.manifest import Manifest

Examples = tuple["npt.NDArray[Any]", "npt.NDArray[Any]"]
_CLIENT_STREAM = 11


class Population(Protocol):
    """Clients numbered from 0; the same number always has the same examples."""

    def __len__(self) -> int:
        """How many clients there are."""

    def examples(self, client: int) -> Examples:
        """X [n, ...] and y [n, ...] of one client; n may be 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayPopulation:
    """Clients that share two arrays: each has some of their rows.

    Attributes:
        x: [N, ...].
        y: [N, ...].
        rows: row numbers, client after client.
        starts: where each client's rows begin; one more at the end.

    Raises:
        PopulationError: rows outside the arrays, or starts that do not fit.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise PopulationError(
                f"x has {len(self.x)} examples and y has {len(self.y)}; give one y each"
            )
        if len(self.starts) < 2 or self.starts[0] != 0 or self.starts[-1] != len(self.rows):
            raise PopulationError("starts: must begin with 0 and end with the number of rows")
        if len(self.rows) and not 0 <= self.rows.min() <= self.rows.max() < len(self.x):
            raise PopulationError(
                f"rows {self.rows.min()}..{self.rows.max()}: the arrays have 0..{len(self.x) - 1}"
            )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def examples(self, client: int) -> Examples:
        """The client's rows of x and y."""
        mine = self.rows[self.starts[client] : self.starts[client + 1]]
        return self.x[mine], self.y[mine]


Make = Callable[[int, np.random.Generator], Examples]


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyPopulation:
    """Clients that are made when they are asked for, and forgotten: a million cost nothing.

    Attributes:
        clients: how many.
        make: from a client's number and its own generator to its examples. For worker processes
            it must be a function of a module, not a lambda.
        seed: of the generators.
    """

    clients: int
    make: Make
    seed: int

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise PopulationError(f"clients {self.clients}: must be at least 1")

    def __len__(self) -> int:
        return self.clients

    def examples(self, client: int) -> Examples:
        """The same examples at every call."""
        return self.make(client, np.random.default_rng([self.seed, _CLIENT_STREAM, client]))


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledPopulation:
    """Any number of clients, each with a draw of rows of two arrays, made when it is asked for.

    Attributes:
        x, y: what is drawn from, [N, ...]; y holds classes where ``alpha`` is given.
        clients: how many.
        smallest, largest: examples of a client, drawn evenly between them, both included.
        alpha: concentration of a Dirichlet distribution of each client's classes (Hsu et al.
            2019); None draws evenly from all rows.
        seed: of every client's draw.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    clients: int
    smallest: int
    largest: int
    alpha: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clients < 1 or not 0 <= self.smallest <= self.largest or self.largest < 1:
            raise PopulationError(
                f"clients {self.clients}, smallest {self.smallest}, largest {self.largest}: at "
                "least one client is needed, and 0 <= smallest <= largest"
            )
        if self.alpha is not None and not self.alpha > 0:
            raise PopulationError(f"alpha {self.alpha}: must be positive; 0.1 to 1 is usual")
        by_class: list[npt.NDArray[np.int64]] = []
        if self.alpha is not None:
            _, counts = np.unique(self.y, return_counts=True)
            by_class = np.split(np.argsort(self.y, kind="stable"), np.cumsum(counts)[:-1])
        object.__setattr__(self, "_by_class", by_class)

    def __len__(self) -> int:
        return self.clients

    def examples(self, client: int) -> Examples:
        """The client's draw; rows may be drawn twice."""
        rng = np.random.default_rng([self.seed, _CLIENT_STREAM, client])
        count = int(rng.integers(self.smallest, self.largest + 1))
        by_class: list[npt.NDArray[np.int64]] = self.__dict__["_by_class"]
        if self.alpha is None:
            rows = rng.integers(0, len(self.x), count)
        else:
            shares = rng.dirichlet(np.full(len(by_class), self.alpha))
            drawn = rng.multinomial(count, shares)
            rows = np.concatenate(
                [own[rng.integers(0, len(own), n)] for own, n in zip(by_class, drawn, strict=True)]
            )
        return self.x[rows], self.y[rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedPopulation:
    """A population whose examples fit a bundle: what a device's trainer would refuse is refused.

    Attributes:
        population: the clients.
        manifest: of the bundle.
        checked: whether all arrays were checked beforehand.
    """

    population: Population
    manifest: Manifest
    checked: bool = False

    def __len__(self) -> int:
        return len(self.population)

    def sizes(self, clients: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many examples each client has; lazily made ones are made for it."""
        if isinstance(self.population, ArrayPopulation):
            return np.diff(self.population.starts)[clients]
        return np.array([len(self.population.examples(int(c))[1]) for c in clients], np.int64)

    def examples(self, client: int) -> Examples:
        """The client's examples in the bundle's dtypes; two empty arrays where it has none.

        Raises:
            PopulationError: shape, dtype, NaN or a label outside the bundle's, with the client.
        """
        x, y = self.population.examples(client)
        if len(x) == 0 or self.checked:
            return x, y
        try:
            return check_examples(x, y, self.manifest)
        except DataError as error:
            raise PopulationError(f"client {client}: {error}") from error


def fit_to_bundle(population: Population, manifest: Manifest) -> CheckedPopulation:
    """The population with its examples checked: arrays once, what is made lazily as it is made.

    Raises:
        PopulationError: there are no clients, or the arrays do not fit.
    """
    if len(population) == 0:
        raise PopulationError("the population has no clients; at least 1 is needed")
    if not isinstance(population, ArrayPopulation | SampledPopulation):
        return CheckedPopulation(population=population, manifest=manifest)
    try:
        x, y = check_examples(population.x, population.y, manifest)
    except DataError as error:
        raise PopulationError(str(error)) from error
    return CheckedPopulation(
        population=replace(population, x=x, y=y), manifest=manifest, checked=True
    )
