import pytest

from rootlet_runtime.continual_metrics import continual_metrics
from rootlet_runtime.errors import DataError


def test_three_tasks_by_hand() -> None:
    found = continual_metrics([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.4, 0.6, 0.95]])
    assert found.average_accuracy == pytest.approx((0.4 + 0.6 + 0.95) / 3)
    assert found.forgetting == pytest.approx(((0.9 - 0.4) + (0.8 - 0.6)) / 2)
    assert found.backward_transfer == pytest.approx(((0.4 - 0.9) + (0.6 - 0.8)) / 2)
    assert found.learning_accuracy == pytest.approx((0.9 + 0.8 + 0.95) / 3)


def test_forgetting_looks_for_the_best_moment_and_transfer_at_the_tasks_own() -> None:
    """A task that later tasks improved, and then harmed, is forgotten from its best moment."""
    found = continual_metrics([[0.5, 0.0, 0.0], [0.9, 0.6, 0.0], [0.7, 0.6, 0.8]])
    assert found.forgetting == pytest.approx(((0.9 - 0.7) + (0.6 - 0.6)) / 2)
    assert found.backward_transfer == pytest.approx(((0.7 - 0.5) + 0.0) / 2)


def test_one_task_forgets_nothing() -> None:
    found = continual_metrics([[0.8]])
    assert (found.average_accuracy, found.forgetting, found.backward_transfer) == (0.8, 0, 0)


@pytest.mark.parametrize("matrix", [[[0.1, 0.2]], [], [[90.0]], [[float("nan")]]])
def test_what_is_no_accuracy_matrix_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(DataError, match="accuracy matrix"):
        continual_metrics(matrix)
