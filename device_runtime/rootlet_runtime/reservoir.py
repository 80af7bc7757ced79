"""Which examples of an endless stream are kept in a bounded memory: reservoir sampling.

Both samplers tell the slot that a new example takes, or ``None`` where it is not kept. They hold no
examples, and their state is a few counters. Every choice comes from the generator passed in.
"""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Selection = Literal["uniform", "class_balanced"]
Counts = npt.NDArray[np.int64]


class Sampler(Protocol):
    """Chooses the slots of a memory of fixed capacity."""

    def place(self, label: int, rng: np.random.Generator) -> int | None:
        """The slot for the next example, or ``None``."""


class UniformReservoir:
    """Vitter's algorithm R (1985).

    Guarantee: after n examples each of them is held with probability ``min(1, capacity / n)``.

    Args:
        capacity: slots.
        seen: examples seen before, where a memory is taken up again.
    """

    def __init__(self, capacity: int, seen: int = 0) -> None:
        self.capacity, self.seen = capacity, seen

    def place(self, label: int, rng: np.random.Generator) -> int | None:
        """Slot n while there is room; then a uniform draw from the n + 1 examples seen."""
        del label
        self.seen += 1
        if self.seen <= self.capacity:
            return self.seen - 1
        drawn = int(rng.integers(self.seen))
        return drawn if drawn < self.capacity else None


class BalancedReservoir:
    """Class-balancing reservoir sampling (Chrysakis & Moens 2020).

    While there is room every example is kept. Then an example of a class that was never the largest
    takes the place of a random one of the largest class; one of a class c that was replaces a
    random one of its own with probability ``held_c / seen_c``.

    Guarantees: once full, a class loses examples only while it is the largest; where every class
    has seen ``capacity / classes`` examples or more since it appeared, the classes' shares differ
    by one at most; within a class each example is held with equal probability.

    Args:
        capacity: slots.
        classes: K.
        labels: classes of the held examples, slot by slot, where a memory is taken up again.
        seen: examples seen of each class [K], where a memory is taken up again.
        largest: which classes have been the largest of a full memory [K].
    """

    def __init__(
        self,
        capacity: int,
        classes: int,
        labels: npt.ArrayLike = (),
        seen: npt.ArrayLike | None = None,
        largest: npt.ArrayLike | None = None,
    ) -> None:
        self.capacity = capacity
        self.labels = [int(label) for label in np.asarray(labels, np.int64)]
        self.seen_K: Counts = np.zeros(classes, np.int64) if seen is None else np.array(seen)
        self.largest_K = np.zeros(classes, bool) if largest is None else np.array(largest, bool)
        self._held_K: Counts = np.bincount(
            np.array(self.labels, np.int64), minlength=classes
        ).astype(np.int64)

    def place(self, label: int, rng: np.random.Generator) -> int | None:
        """A free slot, one of the largest class, one of the same class, or none."""
        self.seen_K[label] += 1
        if len(self.labels) < self.capacity:
            self.labels.append(label)
            self._held_K[label] += 1
            self._note_largest()
            return len(self.labels) - 1
        if self.largest_K[label]:
            if rng.random() * self.seen_K[label] >= self._held_K[label]:
                return None
            loser = label
        else:
            candidates = np.flatnonzero(self._held_K == self._held_K.max())
            loser = int(rng.choice(candidates))
        slot = int(rng.choice(np.flatnonzero(np.array(self.labels) == loser)))
        self.labels[slot] = label
        self._held_K[loser] -= 1
        self._held_K[label] += 1
        self._note_largest()
        return slot

    def _note_largest(self) -> None:
        if len(self.labels) == self.capacity:
            self.largest_K |= self._held_K == self._held_K.max()
