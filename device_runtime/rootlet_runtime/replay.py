"""Replay: a bounded sample of all examples ever seen, trained on again so that they stay learnt.

A buffer keeps rows of bytes under a quota; which ones, a reservoir decides. It holds inputs, or
latents where the bundle has an ``encode`` graph. What it holds is raw training data: it is erased
with the examples. Each use of an example is counted; what private fits spent on it is charged in a
ledger that stays with the buffer.
"""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from rootlet_runtime.array_files import OVERHEAD_BYTES, AnyArrays, ArrayFiles
from rootlet_runtime.errors import CheckpointError, DataError
from rootlet_runtime.manifest import BASE_FILE, Manifest, TensorSpec
from rootlet_runtime.privacy_ledger import PrivacyLedger
from rootlet_runtime.private_report import PrivacySpent
from rootlet_runtime.reservoir import BalancedReservoir, Sampler, Selection, UniformReservoir
from rootlet_runtime.row_codec import AnyArray, RowCodec, Storage

SCHEMA = 1
USES_BYTES = 4  # of the count that each example carries

Uses = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """What a buffer keeps.

    Attributes:
        quota_bytes: most bytes of its file; the rows in memory take no more.
        selection: ``class_balanced`` (classification only) or ``uniform``.
        storage: ``exact``, ``float16`` or ``uint8``; see ``row_codec``.

    Raises:
        DataError: an unknown name.
    """

    quota_bytes: int
    selection: Selection = "class_balanced"
    storage: Storage = "float16"

    def __post_init__(self) -> None:
        for name, choices in (("selection", Selection), ("storage", Storage)):
            if getattr(self, name) not in get_args(choices):
                raise DataError(
                    f"{name} {getattr(self, name)!r}: must be one of {', '.join(get_args(choices))}"
                )


class ReplayBuffer:
    """A bounded sample of a stream of examples.

    Guarantees: the file written by ``save`` is at most ``quota_bytes``; the same examples and the
    same ``rng`` give the same buffer, also where it was saved and restored in between; the law of
    inclusion is that of the reservoir.

    Args:
        manifest: says what an example is.
        settings: what is kept.

    Raises:
        DataError: the quota holds no example, or classes are to be balanced where there are none.
    """

    def __init__(self, manifest: Manifest, settings: ReplaySettings) -> None:
        self.settings = settings
        self.x_spec: TensorSpec = manifest.learns_from
        self._y_spec = manifest.y
        self._encoder = _encoder(manifest)
        self._classes = manifest.num_outputs if manifest.task == "classification" else 0
        self._x_codec = RowCodec(self.x_spec, settings.storage)
        self._y_codec = RowCodec(self._y_spec)
        if settings.selection == "class_balanced" and not self._classes:
            raise DataError("class_balanced: a regression has no classes; use selection='uniform'")
        needed, row_bytes = (quota_bytes(manifest, settings, n) for n in (1, 2))
        row_bytes -= needed
        self.capacity = 1 + (settings.quota_bytes - needed) // row_bytes
        if self.capacity < 1:
            raise DataError(
                f"quota_bytes {settings.quota_bytes}: holds no example; one needs {needed} bytes"
            )
        self._ledger = PrivacyLedger()
        self.clear()

    def clear(self) -> None:
        """Forgets every example and every count; what private fits have spent is not undone."""
        self._x = np.empty((self.capacity, self._x_codec.row_bytes), np.uint8)
        self._y = np.empty((self.capacity, self._y_codec.row_bytes), np.uint8)
        self._uses = np.zeros(self.capacity, np.int64)
        self._held = 0
        self._seen = 0
        self._sampler: Sampler = self._new_sampler({})

    def __len__(self) -> int:
        """Examples held."""
        return self._held

    @property
    def seen(self) -> int:
        """Examples offered so far."""
        return self._seen

    @property
    def uses(self) -> Uses:
        """How often each held example was trained on without privacy: [len]."""
        return self._uses[: self._held].copy()

    @property
    def spent(self) -> tuple[PrivacySpent, ...]:
        """For the accountant: what private fits have spent on each held example at most."""
        return self._ledger.spent

    def add(self, x: AnyArray, y: AnyArray, rng: np.random.Generator, *, uses: int = 0) -> None:
        """Offers examples, in order.

        Args:
            x: [N, ...] in the dtype of ``x_spec``; latents where the bundle encodes.
            y: [N] or [N, K] in the manifest's dtype.
            rng: decides which are kept.
            uses: how often they have been trained on.
        """
        if len(x) != len(y):
            raise DataError(f"x has {len(x)} examples and y has {len(y)}; give one y each")
        packed_x, packed_y = self._x_codec.encode(x), self._y_codec.encode(y)
        for row in range(len(x)):
            self._seen += 1
            slot = self._sampler.place(int(y[row]) if self._classes else 0, rng)
            if slot is None:
                continue
            self._x[slot], self._y[slot], self._uses[slot] = packed_x[row], packed_y[row], uses
            self._held = max(self._held, slot + 1)

    def examples(self) -> tuple[AnyArray, AnyArray]:
        """What is held, decoded: x [len, ...] and y [len, ...]."""
        held = slice(0, self._held)
        return self._x_codec.decode(self._x[held]), self._y_codec.decode(self._y[held])

    def charge(self, uses: npt.ArrayLike) -> None:
        """Adds to the count of uses of each held example: [len].

        Raises:
            DataError: of another length, or negative.
        """
        counts = np.asarray(uses, np.int64)
        if counts.shape != (self._held,) or (counts < 0).any():
            raise DataError(
                f"uses has shape {counts.shape}; give {self._held} counts, none below 0"
            )
        self._uses[: self._held] += counts

    def charge_private(self, spent: PrivacySpent, *, fit: str = "", ended: bool = True) -> None:
        """Charges a private fit to every example; see ``privacy_ledger``."""
        self._ledger.charge(spent, fit=fit, ended=ended)

    def check_private(self, x: AnyArray, y: AnyArray) -> None:
        """Whether a private fit on ``x`` and the buffer can be accounted for.

        Raises:
            DataError: what is held depends on the examples' labels, was trained on without
                privacy, or is in ``x`` too; or the ledger is full.
        """
        if self.settings.selection != "uniform":
            raise DataError(
                f"selection {self.settings.selection!r}: which examples it keeps depends on the "
                "others' labels, so that one example changes more than itself, which no accountant "
                "here charges; a private fit replays a buffer with selection='uniform'"
            )
        if self._uses[: self._held].any():
            raise DataError(
                "the replay buffer holds examples that were trained on without privacy (uses above "
                "0), for which no epsilon holds; start an empty buffer for private fits"
            )
        held = {a.tobytes() + b.tobytes() for a, b in zip(*self._packed(), strict=True)}
        fresh = zip(self._x_codec.encode(x), self._y_codec.encode(y), strict=True)
        twice = sum(a.tobytes() + b.tobytes() in held for a, b in fresh)
        if twice:
            raise DataError(
                f"x holds {twice} examples that the replay buffer holds too: each would count "
                "twice, and be protected half as well; give only new ones as x"
            )
        self._ledger.check_room()

    def check_not_private(self) -> None:
        """Refuses training without privacy on what private fits have promised to protect.

        Raises:
            DataError: the buffer was in a private fit.
        """
        if self.spent:
            raise DataError(
                "the replay buffer was in private fits, and training without privacy would void "
                "what they promise; use fit_private, or another buffer"
            )

    def _packed(self) -> tuple[AnyArray, AnyArray]:
        return self._x[: self._held], self._y[: self._held]

    def save(self, files: ArrayFiles, name: str) -> None:
        """Writes the buffer; a crash leaves the old file or the new one.

        Raises:
            CheckpointError: the disk refused.
        """
        held = slice(0, self._held)
        arrays: AnyArrays = {
            "x": self._x[held],
            "y": self._y[held],
            "uses": self._uses[held].clip(0, 2**31 - 1).astype(np.int32),
        }
        if isinstance(self._sampler, BalancedReservoir):
            arrays["seen"] = self._sampler.seen_K
            arrays["largest"] = self._sampler.largest_K.astype(np.uint8)
        arrays |= self._ledger.to_arrays()
        files.write(name, arrays, {**self._identity(), "seen": self._seen})

    def restore(self, files: ArrayFiles, name: str) -> bool:
        """Takes up what ``save`` wrote; whether there was anything.

        Raises:
            CheckpointError: damaged, or of a buffer with other settings or examples; this one is
                as it was.
        """
        found = files.read(name)
        if found is None:
            return False
        arrays, notes = found
        seen = notes.pop("seen", None)
        if notes != self._identity() or not isinstance(seen, int):
            raise CheckpointError(
                f"{files.folder}: the replay buffer {name!r} was kept with other settings or for "
                f"other examples ({notes}); remove it to start an empty one"
            )
        held = len(arrays["uses"])
        if (
            held > self.capacity
            or arrays["x"].shape != (held, self._x.shape[1])
            or arrays["y"].shape != (held, self._y.shape[1])
        ):
            raise CheckpointError(
                f"{files.folder}: the replay buffer {name!r} has impossible sizes"
            )
        ledger = PrivacyLedger.from_arrays(arrays)
        self.clear()
        self._ledger = ledger
        self._x[:held], self._y[:held], self._uses[:held] = arrays["x"], arrays["y"], arrays["uses"]
        self._held, self._seen = held, seen
        self._sampler = self._new_sampler(arrays)
        return True

    def _new_sampler(self, arrays: AnyArrays) -> Sampler:
        if self.settings.selection == "uniform":
            return UniformReservoir(self.capacity, self._seen)
        labels = self._y_codec.decode(self._y[: self._held])
        return BalancedReservoir(
            self.capacity,
            self._classes,
            labels=labels,
            seen=arrays.get("seen"),
            largest=arrays.get("largest"),
        )

    def _identity(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "schema": SCHEMA,
            "selection": settings.selection,
            "storage": settings.storage,
            "quota_bytes": settings.quota_bytes,
            "x": [self.x_spec.dtype, *self.x_spec.shape[1:]],
            "y": [self._y_spec.dtype, *self._y_spec.shape[1:]],
            "encoder": self._encoder,
        }


def _encoder(manifest: Manifest) -> str:
    """Which network made the latents: another one's mean nothing. Empty for inputs."""
    if manifest.latent is None:
        return ""
    files = (manifest.graphs["encode"].file, BASE_FILE)
    return " ".join(manifest.files[name].sha256 for name in files)


def quota_bytes(manifest: Manifest, settings: ReplaySettings, examples: int) -> int:
    """The quota that holds so many examples, with these settings but for their own quota."""
    counters = 9 * manifest.num_outputs if settings.selection == "class_balanced" else 0
    row_bytes = RowCodec(manifest.learns_from, settings.storage).row_bytes
    row_bytes += RowCodec(manifest.y).row_bytes + USES_BYTES
    return OVERHEAD_BYTES + counters + examples * row_bytes


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How a ``fit`` mixes a buffer into its batches.

    Attributes:
        buffer: what is replayed; an empty one changes nothing.
        fraction: share of each batch that comes from the buffer, in (0, 1); rounded, at least one
            row and at least one fresh one.

    Raises:
        DataError: ``fraction`` is out of bounds.
    """

    buffer: ReplayBuffer
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise DataError(f"replay fraction {self.fraction}: must lie between 0 and 1")

    def rows_per_batch(self, batch_size: int) -> int:
        """Replayed rows in a batch of this size.

        Raises:
            DataError: a batch of one has no room for both.
        """
        if batch_size < 2:
            raise DataError("replay needs a batch_size of at least 2: one fresh row, one replayed")
        return min(max(round(self.fraction * batch_size), 1), batch_size - 1)
