"""Optimisers outside the graph: by hand, against torch over 20 steps, and what they refuse."""

from typing import Any

import numpy as np
import pytest

from rootlet_runtime.optimizers import (
    OPTIMIZERS,
    one_minus_power,
    resolve_hyperparameters,
    state_names,
    update,
)

STEPS = 20
SHAPES = {"a.lora_B": (3, 2), "head.bias": (4,)}


def start(name: str, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    adapter = {key: rng.normal(size=shape).astype(dtype) for key, shape in SHAPES.items()}
    state = {
        key: np.zeros(SHAPES[key.partition("/")[2]], dtype) for key in state_names(name, SHAPES)
    }
    return adapter, state


def gradient(step: int, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng([1, step])
    return {key: (10.0**-step * rng.normal(size=s)).astype(dtype) for key, s in SHAPES.items()}


def run(name: str, dtype: Any = np.float64, **hyperparameters: float) -> dict[str, Any]:
    adapter, state = start(name, dtype)
    for step in range(1, STEPS + 1):
        adapter, state = update(
            name, adapter, gradient(step % 5, dtype), state,
            learning_rate=0.05, step=step, hyperparameters=hyperparameters,
        )  # fmt: skip
    return adapter


def by_hand(name: str, p: float, g: float, **h: float) -> tuple[float, list[float]]:
    """The second update of one number, whose first gradient was -2 and second is ``g``."""
    adapter, state = {"w": np.array([p])}, {key: np.zeros(1) for key in state_names(name, ["w"])}
    for step, value in enumerate((-2.0, g), start=1):
        adapter, state = update(
            name, adapter, {"w": np.array([value])}, state,
            learning_rate=0.1, step=step, hyperparameters=h,
        )  # fmt: skip
    return float(adapter["w"][0]), [float(value[0]) for value in state.values()]


def test_sgd_by_hand() -> None:
    assert by_hand("sgd", 1.0, 4.0) == (pytest.approx(1 + 0.2 - 0.4), [])


def test_momentum_by_hand() -> None:
    """m = -2, then 0.5 (-2) + 4 = 3; p = 1 + 0.2 - 0.3."""
    moved, state = by_hand("momentum", 1.0, 4.0, momentum=0.5)
    assert (moved, state) == (pytest.approx(0.9), [3.0])


def test_nesterov_by_hand() -> None:
    """Steps of g + mu m: -2 - 1 = -3, then 4 + 1.5 = 5.5; p = 1 + 0.3 - 0.55."""
    moved, state = by_hand("nesterov", 1.0, 4.0, momentum=0.5)
    assert (moved, state) == (pytest.approx(0.75), [3.0])


def test_sign_momentum_by_hand() -> None:
    """m = -1, then -0.5 + 0.2 = -0.3: the sign of the momentum, not of the gradient."""
    moved, state = by_hand("sign_momentum", 1.0, 0.4, momentum=0.5)
    assert (moved, state) == (pytest.approx(1.2), [pytest.approx(-0.3)])
    assert by_hand("sign_momentum", 1.0, 2.0, momentum=0.5)[0] == pytest.approx(1.1 - 0.1)


def test_a_zero_momentum_moves_nothing_by_its_sign() -> None:
    zero = {"w": np.zeros(3)}
    moved, _ = update("sign_momentum", zero, zero, {"m/w": np.zeros(3)}, learning_rate=1, step=1)
    assert (moved["w"] == 0).all()


def test_adam_by_hand() -> None:
    """b1 = 0.5, b2 = 0.75: m = -1, then 1.5; v = 1, then 4.75; both over 1 - b^2."""
    moved, state = by_hand("adam", 1.0, 4.0, beta1=0.5, beta2=0.75)
    second = (1.5 / 0.75) / np.sqrt(4.75 / 0.4375)
    assert moved == pytest.approx(1 + 0.1 - 0.1 * second, rel=1e-6)
    assert state == [1.5, 4.75]


def test_adamw_by_hand() -> None:
    """Each step first shrinks p by 1 - 0.1 * 0.5: 0.95 + 0.1, and 0.95 times that minus Adam's."""
    moved, _ = by_hand("adamw", 1.0, 4.0, beta1=0.5, beta2=0.75, weight_decay=0.5)
    second = (1.5 / 0.75) / np.sqrt(4.75 / 0.4375)
    assert moved == pytest.approx(0.95 * 1.05 - 0.1 * second, rel=1e-6)


def torch_optimizer(name: str, parameters: Any) -> Any:
    import torch

    if name == "sgd":
        return torch.optim.SGD(parameters, 0.05)
    if name in {"momentum", "nesterov"}:
        return torch.optim.SGD(parameters, 0.05, momentum=0.8, nesterov=name == "nesterov")
    if name == "adam":
        return torch.optim.Adam(parameters, 0.05, (0.8, 0.99), 1e-6)
    return torch.optim.AdamW(parameters, 0.05, (0.8, 0.99), 1e-6, 0.1)


GIVEN: dict[str, dict[str, float]] = {
    "sgd": {},
    "momentum": {"momentum": 0.8},
    "nesterov": {"momentum": 0.8},
    "adam": {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6},
    "adamw": {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", list(GIVEN))
def test_twenty_steps_equal_torch(name: str) -> None:
    import torch

    adapter, _ = start(name, np.float64)
    parameters = {key: torch.from_numpy(value.copy()) for key, value in adapter.items()}
    optimizer = torch_optimizer(name, list(parameters.values()))
    for step in range(1, STEPS + 1):
        for key, value in gradient(step % 5, np.float64).items():
            parameters[key].grad = torch.from_numpy(value)
        optimizer.step()
    found = run(name, **GIVEN[name])
    for key, value in parameters.items():
        np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_float32_stays_float32_and_follows_float64(name: str) -> None:
    """Twenty updates of about five operations of 6e-8 each; signs are exact where m is not tiny."""
    narrow, wide = run(name, np.float32), run(name)
    for key, value in narrow.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, wide[key], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_nothing_is_changed_in_place(name: str) -> None:
    adapter, state = start(name, np.float32)
    before = {key: value.copy() for key, value in (adapter | state).items()}
    update(name, adapter, gradient(1, np.float32), state, learning_rate=0.1, step=1)
    assert all((value == before[key]).all() for key, value in (adapter | state).items())


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 1 - 1e-6])
@pytest.mark.parametrize("step", [1, 2, 1000, 10**7])
def test_one_minus_power_keeps_its_digits_in_float32(beta: float, step: int) -> None:
    import torch

    exact = -np.expm1(step * np.log(np.longdouble(beta))) if beta else 1.0
    assert float(one_minus_power(np, beta, step)) == pytest.approx(float(exact), rel=1e-14)
    found = float(one_minus_power(torch, beta, torch.tensor(float(step))))
    assert found == pytest.approx(float(exact), rel=3e-7)  # a handful of float32 roundings


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("rmsprop", {}, "must be one of"),
        ("sgd", {"momentum": 0.9}, "sgd reads none"),
        ("adam", {"weight_decay": 0.1}, "adam reads beta1"),
        ("adam", {"beta2": 1.0}, "beta2 = 1.0"),
        ("adam", {"epsilon": 1e-8}, "epsilon = 1e-08"),
        ("adamw", {"weight_decay": -1.0}, "weight_decay"),
        ("momentum", {"momentum": float("nan")}, "momentum = nan"),
        ("momentum", {"momentum": float("inf")}, "momentum = inf"),
    ],
)
def test_impossible_settings_are_refused(name: str, given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_hyperparameters(name, given)
