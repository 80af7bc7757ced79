"""The ledger of private training: what was spent on one set of examples, over all runs.

A folder is a ledger (``rootlet.ledger``) and belongs to one set of examples. A run is charged
before its first step, so that one that is killed has paid; adaptive composition of all charges
bounds what all of them together tell about an example.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from rootlet.ledger import Ledger, read
from rootlet.lock import DirectoryLock
from rootlet_runtime.private_report import PrivacySpent
from rootlet_server.privacy.accounting import AccountingError, epsilon

if TYPE_CHECKING:
    from pathlib import Path

KIND = "private training"


def charged(folder: Path) -> list[PrivacySpent]:
    """What a ledger holds.

    Raises:
        LedgerError: it cannot be read.
    """
    names = [field.name for field in fields(PrivacySpent)]
    return [
        PrivacySpent(**{name: entry.fields[name] for name in names})
        for entry in read(folder)
        if entry.kind == KIND
    ]


def charge(
    folder: Path, spent: PrivacySpent, *, delta: float, budget_epsilon: float | None = None
) -> float:
    """Charge a run that is about to begin.

    Args:
        folder: of the ledger; made if absent.
        spent: all that the run will spend.
        delta: of the guarantee.
        budget_epsilon: the most that all runs together may spend; None for no bound.

    Returns:
        The epsilon of all runs together, this one included.

    Raises:
        AccountingError: the budget would be exceeded; nothing was charged.
        LedgerError: the ledger is broken, or the disk refuses it.
        StateError: another run charges it at this moment.
    """
    with DirectoryLock(folder):
        ledger, earlier = Ledger(folder), charged(folder)
        total = epsilon([*earlier, spent], delta)
        if budget_epsilon is not None and total > budget_epsilon:
            before = epsilon(earlier, delta) if earlier else 0.0
            raise AccountingError(
                f"this run would bring epsilon to {total:.3g} at delta {delta:g} (per "
                f"{spent.unit}, {spent.neighbours}), above the budget of {budget_epsilon:g}; "
                f"{before:.3g} were spent by {len(earlier)} earlier runs in {folder}. Train for "
                "fewer steps, with more noise, or not at all"
            )
        ledger.append(KIND, **asdict(spent), delta=delta, epsilon_of_all=total)
    return total
