"""How well a learner keeps what it learnt: measures of one accuracy matrix.

``R[i, j]`` is the accuracy on task j after training on tasks 0..i, in that order, T tasks in all.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rootlet_runtime.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ContinualMetrics:
    """Shares in [-1, 1].

    Attributes:
        average_accuracy: ``mean_j R[T-1, j]``: over all tasks, after the last (Lopez-Paz &
            Ranzato 2017).
        forgetting: ``mean_{j<T-1} (max_{i<T-1} R[i, j] - R[T-1, j])``: what was lost since the best
            moment (Chaudhry et al. 2018); 0 for one task.
        backward_transfer: ``mean_{j<T-1} (R[T-1, j] - R[j, j])`` (Lopez-Paz & Ranzato 2017);
            negative where later tasks harm; 0 for one task.
        learning_accuracy: ``mean_j R[j, j]``: how well each task was learnt when it was new; a
            learner that learns nothing forgets nothing.
    """

    average_accuracy: float
    forgetting: float
    backward_transfer: float
    learning_accuracy: float


def continual_metrics(accuracy_TT: npt.ArrayLike) -> ContinualMetrics:
    """The measures of an accuracy matrix [T, T]; row i is measured after task i.

    Entries above the diagonal count only towards forgetting's best moment, as defined.

    Raises:
        DataError: not a square matrix of numbers in [0, 1].
    """
    accuracy = np.asarray(accuracy_TT, np.float64)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or not accuracy.size:
        raise DataError(f"the accuracy matrix has shape {accuracy.shape}; it must be [T, T]")
    if not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise DataError("the accuracy matrix holds values outside 0..1; give shares, not per cent")
    last, when_new = accuracy[-1], np.diagonal(accuracy)
    earlier = slice(0, len(accuracy) - 1)
    forgetting = backward = 0.0
    if len(accuracy) > 1:
        forgetting = float((accuracy[earlier, earlier].max(axis=0) - last[earlier]).mean())
        backward = float((last[earlier] - when_new[earlier]).mean())
    return ContinualMetrics(
        average_accuracy=float(last.mean()),
        forgetting=forgetting,
        backward_transfer=backward,
        learning_accuracy=float(when_new.mean()),
    )
