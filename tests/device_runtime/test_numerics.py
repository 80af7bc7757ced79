"""The numerics ladder: a step by hand in float64, then whole runs, then what must not matter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.batches import Schedule, draw_seed

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-7
# float32 carries 24 bits: 6e-8 relative for each operation, and a step is some thirty in a row.
# Adam divides by the root of 1 - beta_2^t: at t = 1 that is 1e-3, known to 6e-8 / 1e-3 = 6e-5,
# and the root halves it.
TOLERANCE = {"sgd": 2e-6, "adam": 3.2e-5}

Floats = np.ndarray[Any, np.dtype[np.float64]]
State = dict[str, Floats]


class Reference:
    """Softmax regression on the frozen projection, in float64."""

    def __init__(self, bundle: Bundle) -> None:
        base = np.frombuffer(bundle.entry("base.bin")[64:], np.float32).reshape(4, 6)
        self.P = base.astype(np.float64)
        self.adapter = {n: a.astype(np.float64) for n, a in bundle.initial_adapter().items()}
        self.m = {n: np.zeros_like(a) for n, a in self.adapter.items()}
        self.v = {n: np.zeros_like(a) for n, a in self.adapter.items()}
        self.rule = {"sgd": self.sgd, "adam": self.adam}[bundle.manifest.optimizer]
        self.steps = 0

    def forward(self, x_BD: Floats) -> tuple[Floats, Floats]:
        h_BF = np.tanh(x_BD @ self.P)
        z_BK = h_BF @ self.adapter["head.weight"].T + self.adapter["head.bias"]
        e_BK = np.exp(z_BK - z_BK.max(1, keepdims=True))
        return h_BF, e_BK / e_BK.sum(1, keepdims=True)

    def step(self, x_BD: Floats, y_B: Floats, lr: float) -> float:
        h_BF, p_BK = self.forward(x_BD)
        rows = np.arange(len(y_B))
        loss = -np.log(p_BK[rows, y_B]).mean()
        error_BK = p_BK.copy()
        error_BK[rows, y_B] -= 1
        error_BK /= len(y_B)
        self.steps += 1
        self.rule({"head.weight": error_BK.T @ h_BF, "head.bias": error_BK.sum(0)}, lr)
        return float(loss)

    def sgd(self, gradient: State, lr: float) -> None:
        for name, g in gradient.items():
            self.adapter[name] -= lr * g

    def adam(self, gradient: State, lr: float) -> None:
        for name, g in gradient.items():
            self.m[name] = BETA_1 * self.m[name] + (1 - BETA_1) * g
            self.v[name] = BETA_2 * self.v[name] + (1 - BETA_2) * g * g
            m_hat = self.m[name] / (1 - BETA_1**self.steps)
            v_hat = self.v[name] / (1 - BETA_2**self.steps)
            self.adapter[name] -= lr * m_hat / (np.sqrt(v_hat) + EPS)


def test_one_step_by_hand(bundle: Bundle) -> None:
    """One example at the origin: h = 0, and only the bias moves, by softmax(b) - onehot."""
    trainer = Trainer(bundle)
    bias = np.log([2.0, 1.0, 1.0]).astype(np.float32)
    trainer.load_adapter(trainer.adapter | {"head.bias": bias})
    before = trainer.adapter
    result = trainer.fit(
        np.zeros((1, 4), np.float32),
        np.array([0]),
        epochs=1,
        batch_size=1,
        learning_rate=0.1,
        rng=np.random.default_rng(0),
    )
    after = trainer.adapter
    assert result.loss == pytest.approx(np.log(2), rel=1e-6)
    gradient = np.array([-0.5, 0.25, 0.25])
    expected = gradient if bundle.manifest.optimizer == "sgd" else np.sign(gradient)
    moved = before["head.bias"] - after["head.bias"]
    tolerance = TOLERANCE[bundle.manifest.optimizer]
    np.testing.assert_allclose(moved, 0.1 * expected, rtol=tolerance, atol=6e-8)
    np.testing.assert_array_equal(before["head.weight"], after["head.weight"])


def test_a_run_equals_float64(bundle: Bundle, examples: tuple[Any, Any]) -> None:
    x, y = examples
    trainer, reference = Trainer(bundle), Reference(bundle)
    schedule = Schedule(
        seed=draw_seed(np.random.default_rng(5)), examples=len(x), batch_size=8, epochs=3
    )
    losses: list[float] = []
    result = trainer.fit(
        x,
        y,
        epochs=3,
        batch_size=8,
        learning_rate=0.05,
        rng=np.random.default_rng(5),
        progress=lambda report: losses.append(report.loss),
    )
    expected = [
        reference.step(x[rows].astype(np.float64), y[rows], 0.05) for rows in schedule.rows()
    ]
    tolerance = TOLERANCE[bundle.manifest.optimizer]
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    for name, array in trainer.adapter.items():
        np.testing.assert_allclose(array, reference.adapter[name], rtol=tolerance, atol=tolerance)
    assert (result.steps, result.examples, result.stopped) == (15, 111, False)
    sizes = [8, 8, 8, 8, 5]
    assert result.loss == pytest.approx(np.average(expected[-5:], weights=sizes), rel=tolerance)


def test_evaluate_and_predict_equal_float64(bundle: Bundle, examples: tuple[Any, Any]) -> None:
    x, y = examples
    trainer, reference = Trainer(bundle), Reference(bundle)
    _, p_BK = reference.forward(x.astype(np.float64))
    found = trainer.evaluate(x, y, batch_size=8)
    np.testing.assert_allclose(trainer.predict(x, batch_size=8), p_BK, rtol=2e-6)
    assert found.loss == pytest.approx(-np.log(p_BK[np.arange(len(y)), y]).mean(), rel=2e-6)
    assert found.metric == pytest.approx((p_BK.argmax(1) == y).mean())
    assert found.examples == len(x)


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_results_do_not_depend_on_how_examples_are_batched(
    batch_size: int, trainer: Trainer, examples: tuple[Any, Any]
) -> None:
    x, y = examples
    whole = trainer.evaluate(x, y)
    parts = trainer.evaluate(x, y, batch_size=batch_size)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.metric == pytest.approx(whole.metric)
    np.testing.assert_allclose(trainer.predict(x), trainer.predict(x, batch_size), rtol=1e-6)


def test_padding_rows_do_not_teach(bundle: Bundle, examples: tuple[Any, Any]) -> None:
    """Nine examples in batches of eight leave one real row and seven of weight zero."""
    x, y = examples[0][:9], examples[1][:9]
    trainer, reference = Trainer(bundle), Reference(bundle)
    rng = np.random.default_rng(2)
    schedule = Schedule(
        seed=draw_seed(np.random.default_rng(2)), examples=9, batch_size=8, epochs=1
    )
    trainer.fit(x, y, epochs=1, batch_size=8, learning_rate=0.1, rng=rng)
    for rows in schedule.rows():
        reference.step(x[rows].astype(np.float64), y[rows], 0.1)
    tolerance = TOLERANCE[bundle.manifest.optimizer]
    for name, array in trainer.adapter.items():
        np.testing.assert_allclose(array, reference.adapter[name], rtol=tolerance, atol=tolerance)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    bundle: Bundle, examples: tuple[Any, Any]
) -> None:
    def run(seed: int) -> dict[str, Any]:
        trainer = Trainer(bundle)
        rng = np.random.default_rng(seed)
        trainer.fit(*examples, epochs=2, batch_size=8, learning_rate=0.1, rng=rng)
        return trainer.adapter

    first, again, other = run(3), run(3), run(4)
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_the_optimiser_goes_on_between_fits_and_starts_anew_with_an_adapter(
    bundle: Bundle, examples: tuple[Any, Any]
) -> None:
    def fit(trainer: Trainer) -> None:
        rng = np.random.default_rng(0)
        trainer.fit(*examples, epochs=1, batch_size=32, learning_rate=0.1, rng=rng)

    going_on, anew = Trainer(bundle), Trainer(bundle)
    fit(going_on)
    fit(anew)
    anew.load_adapter(anew.adapter)
    fit(going_on)
    fit(anew)
    same = (going_on.adapter["head.weight"] == anew.adapter["head.weight"]).all()
    assert same == (bundle.manifest.optimizer == "sgd")


def test_regression_equals_float64(
    bundle_paths: dict[str, Path], key: Ed25519PrivateKey, examples: tuple[Any, Any]
) -> None:
    """L = mean over examples and outputs of (z - y)^2, one step on all of them, by hand."""
    x_BD = examples[0][:16].astype(np.float64)
    y_BK = np.random.default_rng(4).normal(size=(16, 3))
    with Bundle.load(bundle_paths["regression"], trusted_keys=[key.public_key()]) as bundle:
        trainer, reference = Trainer(bundle), Reference(bundle)
        h_BF = np.tanh(x_BD @ reference.P)

        def outputs() -> Floats:
            return h_BF @ reference.adapter["head.weight"].T + reference.adapter["head.bias"]

        error_BK = outputs() - y_BK
        rng = np.random.default_rng(0)
        result = trainer.fit(x_BD, y_BK, epochs=1, batch_size=16, learning_rate=0.1, rng=rng)
        scaled_BK = 2 * error_BK / error_BK.size
        reference.sgd({"head.weight": scaled_BK.T @ h_BF, "head.bias": scaled_BK.sum(0)}, 0.1)
        assert result.loss == result.metric == pytest.approx((error_BK**2).mean(), rel=2e-6)
        np.testing.assert_allclose(trainer.predict(x_BD), outputs(), rtol=1e-5, atol=2e-6)
        found = trainer.evaluate(x_BD, y_BK)
        assert found.metric == pytest.approx(((outputs() - y_BK) ** 2).mean(), rel=2e-6)


@pytest.fixture
def permuted() -> Callable[[Any], Any]:
    order = np.random.default_rng(9).permutation(37)
    return lambda array: array[order]


def test_prediction_follows_the_rows(
    trainer: Trainer, examples: tuple[Any, Any], permuted: Callable[[Any], Any]
) -> None:
    x, _ = examples
    np.testing.assert_array_equal(permuted(trainer.predict(x)), trainer.predict(permuted(x)))
