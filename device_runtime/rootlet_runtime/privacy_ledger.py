"""What private fits have spent on the examples of a replay buffer, kept with the buffer.

An example may have been in any of the fits since the buffer began: as a fresh one, and later as a
replayed one. So every fit is charged to all of them, and the composition of the whole ledger bounds
what was spent on each.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from rootlet_runtime.array_files import AnyArrays
from rootlet_runtime.errors import CheckpointError, DataError
from rootlet_runtime.private_report import ADD_OR_REMOVE, ZERO_OUT, PrivacySpent

MAX_MECHANISMS = 16  # what a buffer's file has room for
FIT_BYTES = 16  # of a fit's name
_ENTRIES, _FITS = "spent", "spent.fits"


@dataclass
class PrivacyLedger:
    """Steps by mechanism, and apart from them the fits that were stopped and may go on."""

    _ended: list[PrivacySpent] = field(default_factory=list)
    _open: dict[str, PrivacySpent] = field(default_factory=dict)

    @property
    def spent(self) -> tuple[PrivacySpent, ...]:
        """For the accountant: all of it composes."""
        return (*self._ended, *self._open.values())

    def check_room(self) -> None:
        """Refuses another fit where the ledger is full.

        Raises:
            DataError: it is.
        """
        if len(self.spent) >= MAX_MECHANISMS:
            raise DataError(
                f"the replay buffer was in private fits of {len(self.spent)} different mechanisms, "
                "its most: start an empty buffer, and keep sample_rate, noise_multiplier and "
                "max_grad_norm from fit to fit"
            )

    def charge(self, spent: PrivacySpent, *, fit: str = "", ended: bool = True) -> None:
        """Charges a fit, in place of what was charged when it was stopped."""
        self._open.pop(fit, None)
        if not spent.steps:
            return
        if not ended:
            self._open[fit] = spent
            return
        for at, each in enumerate(self._ended):
            if replace(each, steps=spent.steps) == spent:
                self._ended[at] = replace(each, steps=each.steps + spent.steps)
                return
        self._ended.append(spent)

    def to_arrays(self) -> AnyArrays:
        """What a file keeps; nothing where nothing was spent."""
        rows = [
            (s.steps, s.sample_rate, s.noise_multiplier, s.max_grad_norm, s.neighbours == ZERO_OUT)
            for s in self.spent
        ]
        fits = bytes(FIT_BYTES * len(self._ended)) + b"".join(map(bytes.fromhex, self._open))
        if not rows:
            return {}
        return {
            _ENTRIES: np.array(rows, np.float64),
            _FITS: np.frombuffer(fits, np.uint8).reshape(len(rows), FIT_BYTES),
        }

    @classmethod
    def from_arrays(cls, arrays: AnyArrays) -> "PrivacyLedger":
        """The ledger of a file.

        Raises:
            CheckpointError: it has impossible sizes.
        """
        entries = arrays.get(_ENTRIES, np.zeros((0, 5)))
        fits = arrays.get(_FITS, np.zeros((0, FIT_BYTES), np.uint8))
        if entries.shape != (len(fits), 5) or fits.shape != (len(entries), FIT_BYTES):
            raise CheckpointError("the replay buffer's privacy ledger has impossible sizes")
        ledger = cls()
        for fit, (steps, rate, noise, bound, zero_out) in zip(fits, entries, strict=True):
            spent = PrivacySpent(
                steps=int(steps),
                sample_rate=float(rate),
                noise_multiplier=float(noise),
                max_grad_norm=float(bound),
                neighbours=ZERO_OUT if zero_out else ADD_OR_REMOVE,
            )
            ledger.charge(spent, fit=bytes(fit).hex(), ended=not fit.any())
        return ledger
