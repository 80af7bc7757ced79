"""The quality gate: an update that is worse on the device's own held-out examples is refused.

Errors are paired: example by example, under the adapter before (e) and after (e'). The update is
refused where

* a one-sided sign-flip test (Fisher's randomisation test) of ``e' - e`` gives ``p <= alpha``, or
* the rise ``mean(e' - e)`` is above ``margin`` (a share of the examples; for regression a share of
  the error before), and the test gives ``p <= 0.2``: three examples worse and none better.

Formal guarantee: where an update changes nothing but by chance (the signs of ``e' - e`` are fair
coins), the first condition holds with a probability of at most ``alpha``, and both together with
one of at most 0.2. The rates measured are in ``docs/continual.md``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rootlet_runtime.errors import DataError

FLIPS = 1999
WEAK_EVIDENCE = 0.2
AnyArray = npt.NDArray[Any]
Errors = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says.

    Attributes:
        accepted: whether the update may be used.
        reason: why, in plain words.
        before: mean error of the last accepted adapter.
        after: mean error of the update.
        p_value: of the sign-flip test; 1 where nothing got worse.
        examples: held-out examples that were compared; with 0 nothing could be said.
    """

    accepted: bool
    reason: str
    before: float
    after: float
    p_value: float
    examples: int


@dataclass(frozen=True, kw_only=True)
class QualityGate:
    """When an update is refused; see the module.

    Raises:
        DataError: a number is out of bounds.
    """

    alpha: float = 0.05
    margin: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and self.margin > 0):
            raise DataError(
                f"alpha {self.alpha}, margin {self.margin}: alpha must lie between 0 and 1, and "
                "margin be positive"
            )

    def judge(self, before_N: Errors, after_N: Errors, *, relative: bool = False) -> Verdict:
        """Compares two adapters.

        Args:
            before_N: errors of the last accepted adapter, one for each held-out example.
            after_N: errors of the update on the same examples.
            relative: take ``margin`` as a share of the error before (regression).

        Raises:
            DataError: they are not of one length.
        """
        if before_N.shape != after_N.shape or before_N.ndim != 1:
            raise DataError(f"errors of shapes {before_N.shape} and {after_N.shape}: not a pair")
        if not len(before_N):
            return _verdict(True, "there are no held-out examples to judge by", 0.0, 0.0, 1.0, 0)
        before, after = float(before_N.mean()), float(after_N.mean())
        facts = (before, after, p_value(before_N, after_N), len(before_N))
        if not np.isfinite(after_N).all():
            return _verdict(False, "its outputs are not finite", *facts)
        rise = (after - before) / (max(before, 1e-12) if relative else 1.0)
        if rise > self.margin and facts[2] <= WEAK_EVIDENCE:
            return _verdict(
                False, f"the error rose by {rise:.3g}, above the margin {self.margin:.3g}", *facts
            )
        if rise > 0 and facts[2] <= self.alpha:
            return _verdict(
                False,
                f"the error rose from {before:.3g} to {after:.3g} (p = {facts[2]:.2g})",
                *facts,
            )
        return _verdict(True, "it is not worse on the held-out examples", *facts)


def example_errors(task: str, output_NK: AnyArray, y: AnyArray) -> Errors:
    """One error an example: 1 for a wrong class, or the mean squared error of a regression.

    An output that is not finite is an infinite error.
    """
    finite = np.isfinite(output_NK).all(axis=1)
    if task == "classification":
        errors = (output_NK.argmax(axis=1) != y).astype(np.float64)
    else:
        errors = np.square(output_NK.astype(np.float64) - y).mean(axis=1)
    return np.where(finite, errors, np.inf)


def p_value(before_N: Errors, after_N: Errors) -> float:
    """One-sided p of the sign-flip test: ``(1 + #{flipped sum >= sum}) / (1 + flips)``.

    The flips are drawn from a fixed seed: the same errors give the same verdict. Phipson & Smyth
    (2010) on why both ones are there.
    """
    change = after_N - before_N
    change = change[change != 0]
    if not len(change) or not np.isfinite(change).all():
        return 1.0 if not len(change) else 0.0
    total = float(change.sum())
    if total <= 0:
        return 1.0
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(FLIPS, len(change)))
    reached = int((signs @ change >= total - 1e-9 * total).sum())
    return (1 + reached) / (1 + FLIPS)


def _verdict(  # noqa: PLR0917 (the fields, in their order)
    accepted: bool, reason: str, before: float, after: float, p: float, examples: int
) -> Verdict:
    return Verdict(
        accepted=accepted, reason=reason, before=before, after=after, p_value=p, examples=examples
    )
