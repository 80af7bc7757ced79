"""The optimisers inside the graph: clipped by hand, exported, and equal to those outside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rootlet_runtime import optimizers
from rootlet_server.compiler import CompileConfig, CompileError, TrainingConfig
from rootlet_server.compiler.optimizers import clip_factor, optimize

STEPS = 5


def test_clipping_by_hand():
    """The norm over both tensors is 5: at most 2.5 halves them, and at most 10 leaves them."""
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert clip_factor(gradients, 2.5).item() == 0.5
    assert clip_factor(gradients, 10.0).item() == 1.0
    assert clip_factor({"a": torch.zeros(2)}, 1.0).item() == 1.0
    assert clip_factor({"a": torch.tensor([1e30, -1.0])}, 1.0).item() == 0.0


def test_the_optimiser_sees_the_clipped_gradient():
    adapter, gradient = {"p": torch.tensor([1.0])}, {"p": torch.tensor([8.0])}
    rate = torch.tensor(0.5)
    for name in ("sgd", "momentum"):
        state = {f"{slot}/p": torch.zeros(1) for slot in optimizers.OPTIMIZERS[name].slots}
        moved, state = optimize(name, adapter, gradient, state, rate, max_gradient_norm=2.0)
        assert moved["p"].tolist() == [0.0]
    assert state["m/p"].tolist() == [2.0]


def run_graph(lab, built, engine, case):
    """(adapters after each step of the graph, gradients that the steps used)."""
    adapter = {name: value.clone() for name, value in built.adapter.items()}
    state = {name: torch.zeros(adapter[name.partition("/")[2]].shape) for name in built.step.state}
    seen, gradients = [], []
    for number in range(1, STEPS + 1):
        rows = torch.arange(8) + number
        gradients.append(
            lab.gradients(replace(built, adapter=adapter), "dfa", case.x[rows], case.y[rows])
        )
        found = engine(
            {"x": case.x[rows], "y": case.y[rows], "w": torch.ones(8)}
            | {"learning_rate": torch.tensor(0.05), "step": torch.tensor(float(number))}
            | {f"adapter/{name}": value for name, value in adapter.items()}
            | {f"optimizer/{name}": value for name, value in state.items()}
        )
        adapter = {name: found[f"next/adapter/{name}"] for name in adapter}
        state = {name: found[f"next/optimizer/{name}"] for name in state}
        seen.append(adapter)
    return seen, gradients


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw", "sign_momentum"])
def test_the_exported_graph_equals_the_optimiser_outside_it(lab, name):
    """Clipped in both; the gradients differ by 1e-7, of which Adam makes 1e-4 where they are tiny.

    A sign turns only where the momentum is within rounding of zero; the adapter starts at B = 0,
    where a whole tensor's gradient may be exactly that: those signs agree.
    """
    case = lab.case("mlp")
    built = lab.stirred(lab.built("mlp", optimizer=name))
    built = replace(built, step=replace(built.step, max_gradient_norm=0.3))
    seen, gradients = run_graph(lab, built, lab.engine(built, "train"), case)
    adapter = {key: value.numpy() for key, value in built.adapter.items()}
    state = {
        key: np.zeros(adapter[key.partition("/")[2]].shape, np.float32) for key in built.step.state
    }
    for number, (expected, gradient) in enumerate(zip(seen, gradients, strict=True), start=1):
        factor = clip_factor(gradient, 0.3)
        assert factor < 1
        clipped = {key: value * factor for key, value in gradient.items()}
        adapter, state = optimizers.update(
            name, adapter, {key: value.numpy() for key, value in clipped.items()}, state,
            learning_rate=0.05, step=number,
        )  # fmt: skip
        for key, value in expected.items():
            error = np.linalg.norm(adapter[key] - value.numpy())
            assert error <= 1e-4 * np.linalg.norm(value.numpy() - built.adapter[key].numpy()) + 1e-7


def test_adams_first_steps_keep_their_digits_in_the_graph(lab):
    """1 - 0.999 as a difference of float32 would be off by 1.3e-5, and the step by half of that."""
    case = lab.case("mlp")
    built = lab.stirred(lab.built("mlp", optimizer="adam"))
    seen, gradients = run_graph(lab, built, lab.engine(built, "train"), case)
    first = {key: value.double().numpy() for key, value in gradients[0].items()}
    wide = {key: value.double().numpy() for key, value in built.adapter.items()}
    zeros = {key: np.zeros(wide[key.partition("/")[2]].shape) for key in built.step.state}
    expected, _ = optimizers.update("adam", wide, first, zeros, learning_rate=0.05, step=1)
    for key, start in wide.items():
        large = np.abs(first[key]) > 1e-3  # below, epsilon and the gradient's own rounding count
        moved = seen[0][key].double().numpy() - start
        np.testing.assert_allclose(
            moved[large], (expected[key] - start)[large], rtol=0, atol=1.5e-7
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"hyperparameters": {"momentum": 0.9}}, "sgd reads none"),
        ({"optimizer": "adam", "hyperparameters": {"beta1": 1.5}}, "beta1 = 1.5"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm=0.0"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(CompileError, match=message):
        CompileConfig(**options)


@pytest.mark.parametrize("change", [{"decay": "step"}, {"warmup": 0.9}])
def test_impossible_schedules_are_refused(change):
    with pytest.raises(CompileError, match=f"training: {next(iter(change))}"):
        TrainingConfig(**change)
