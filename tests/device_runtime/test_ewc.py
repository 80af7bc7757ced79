"""Elastic weights: the proximal step by hand and as a minimiser, and what it does to a training."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet_runtime import Bundle, TensorSpec, Trainer, ewc
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.errors import AdapterError, DataError
from rootlet_runtime.ewc import ElasticWeights, consolidated, diagonal_fisher

SPECS = (TensorSpec(name="p", dtype="float32", shape=(3,)),)


def array(*values: float) -> dict[str, np.ndarray]:
    return {"p": np.array(values, np.float32)}


def test_the_pull_by_hand() -> None:
    """lr strength F = 1 halves the distance to the anchor; F = 0 leaves a parameter alone."""
    weights = ElasticWeights(fisher=array(5, 0, 15), anchor=array(1, 1, 1), strength=2.0)
    np.testing.assert_allclose(weights.pulled(array(3, 3, 3), 0.1)["p"], [2, 3, 1.5])
    assert weights.penalty(array(3, 3, 3)) == pytest.approx(5 * 4 + 15 * 4)


@given(st.floats(-5, 5), st.floats(0, 100), st.floats(0, 100), st.floats(1e-4, 1))
def test_the_pull_minimises_distance_plus_penalty(
    start: float, fisher: float, strength: float, rate: float
) -> None:
    weights = ElasticWeights(fisher=array(fisher), anchor=array(0.5), strength=strength)

    def objective(p: float) -> float:
        return (p - start) ** 2 / 2 + rate * strength * fisher * (p - 0.5) ** 2 / 2

    found = float(weights.pulled(array(start), rate)["p"][0])
    assert all(objective(found) <= objective(found + d) + 1e-9 for d in (-1e-2, 1e-2))
    assert min(start, 0.5) - 1e-6 <= found <= max(start, 0.5) + 1e-6  # never past the anchor


def test_the_fisher_is_the_mean_square() -> None:
    found = diagonal_fisher([array(1, 2, 0), array(3, -4, 0)])
    np.testing.assert_allclose(found["p"], [5, 10, 0])
    with pytest.raises(DataError, match="at least one example"):
        diagonal_fisher([])


def test_tasks_add_up_and_the_anchor_moves_on() -> None:
    first = consolidated(None, array(1, 2, 3), array(0, 0, 0), strength=4.0)
    second = consolidated(first, array(1, 1, 1), array(9, 9, 9), strength=4.0, decay=0.5)
    np.testing.assert_allclose(second.fisher["p"], [1.5, 2, 2.5])
    np.testing.assert_allclose(second.anchor["p"], [9, 9, 9])
    for impossible in (-0.1, 1.1):
        with pytest.raises(DataError, match="decay"):
            consolidated(first, array(1, 1, 1), array(9, 9, 9), strength=1.0, decay=impossible)
    with pytest.raises(DataError, match="strength -1"):
        ElasticWeights(fisher=array(1), anchor=array(1), strength=-1)


def test_they_survive_the_process(tmp_path: Path) -> None:
    files = ArrayFiles(tmp_path)
    assert ewc.restore(files, "ewc", SPECS) is None
    weights = ElasticWeights(fisher=array(1, 2, 3), anchor=array(4, 5, 6), strength=7.0)
    ewc.save(weights, files, "ewc")
    again = ewc.restore(files, "ewc", SPECS)
    assert again is not None
    assert again.digest() == weights.digest()
    other = (TensorSpec(name="q", dtype="float32", shape=(3,)),)
    with pytest.raises(AdapterError, match="missing tensors"):
        ewc.restore(files, "ewc", other)


def test_a_training_stays_near_the_anchor_the_more_so_the_stronger(
    bundle: Bundle, examples
) -> None:
    """The same for SGD and Adam; strength 0 is no penalty, to the bit."""
    start = bundle.initial_adapter()
    fisher = {name: np.ones_like(value) for name, value in start.items()}
    moved = []
    for strength in (None, 0.0, 10.0, 1e9):
        elastic = None
        if strength is not None:
            elastic = ElasticWeights(fisher=fisher, anchor=start, strength=strength)
        trainer = Trainer(bundle)
        trainer.fit(
            *examples,
            epochs=4,
            batch_size=8,
            learning_rate=0.1,
            rng=np.random.default_rng(0),
            elastic=elastic,
        )
        moved.append(
            sum(float(np.square(v - start[n]).sum()) for n, v in trainer.adapter.items()) ** 0.5
        )
    none, zero, some, strong = moved
    assert none == pytest.approx(zero, rel=1e-6)
    assert some < 0.9 * none
    assert strong < 1e-6
