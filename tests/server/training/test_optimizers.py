"""Every optimiser learns, goes on bit by bit, and refuses what is not its own."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from rootlet_server.training import OptimizerConfig, train
from rootlet_server.training.errors import FullTrainingConfigError
from rootlet_server.training.optimizers import make_optimizer

RATES = {
    "sgd": 0.1, "adam": 3e-3, "adamw": 3e-3, "lamb": 1e-2, "lars": 2.0, "lion": 1e-3,
    "sophia": 3.0, "shampoo": 0.03, "soap": 3e-3, "lbfgs": 1.0, "kfac": 0.1, "hessian_free": 1.0,
}  # fmt: skip
WHOLE = {
    "training": {"epochs": 8, "batch_size": 400},
    "schedule": {"decay": "constant", "warmup": 0},
}
CASES = [*((name, 0.0) for name in RATES), ("sgd", 0.05), ("adamw", 0.05)]


def settings(name: str, rho: float) -> dict:
    whole = WHOLE if name in ("lbfgs", "hessian_free") else {"training": {"epochs": 4}}
    return whole | {"optimizer": {"name": name, "learning_rate": RATES[name], "sam_rho": rho}}


@torch.no_grad()
def mean_loss(model: nn.Module, examples) -> float:
    return float(nn.functional.cross_entropy(model(examples.x), examples.y))


@pytest.mark.parametrize(("name", "rho"), CASES)
def test_it_learns_and_a_run_cut_in_two_is_the_same_run(name, rho, nets, tmp_path):
    case = settings(name, rho)
    case["training"] = case["training"] | {"checkpoint_every": 5}
    data, config = nets.digits(), nets.config(**case)
    before = mean_loss(nets.residual(), data.train)
    whole = train(nets.residual(), data, config, out=tmp_path)
    assert mean_loss(whole.model, data.train) < before - 0.05
    last = sorted((tmp_path / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)  # as if it had been killed before the end
    again = train(nets.residual(), data, config, out=tmp_path)
    assert 0 < again.resumed_from_step < whole.steps
    assert torch.equal(nets.flat(again.model), nets.flat(whole.model))


def test_the_first_step_of_sgd_is_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -1.0]])
    optimizer = make_optimizer(layer, OptimizerConfig(name="sgd", learning_rate=0.5))
    (layer(torch.tensor([[2.0, 1.0]])) ** 2).sum().backward()  # 1^2; d/dw = 2 (w x) x = (4, 2)
    optimizer.step()
    torch.testing.assert_close(layer.weight.data, torch.tensor([[-1.0, -2.0]]))


def test_sam_takes_the_gradient_at_the_top_of_the_ball():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    config = OptimizerConfig(
        name="sgd", learning_rate=0.1, sam_rho=0.5, hyperparameters={"momentum": 0.0}
    )
    optimizer = make_optimizer(layer, config)

    def closure():
        optimizer.zero_grad()
        loss = (layer(torch.ones(1, 1)) ** 2).sum()
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)  # gradient 2 (1 + 0.5) = 3 at 1.5; 1 - 0.1 * 3
    torch.testing.assert_close(layer.weight.data, torch.tensor([[0.7]]))


def test_vectors_do_not_decay(nets):
    model = nets.residual()
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1))
    decays = {g["weight_decay"]: {p.dim() for p in g["params"]} for g in optimizer.param_groups}
    assert decays == {0.1: {2}, 0.0: {1}}


@pytest.mark.parametrize(
    ("name", "hyperparameters", "named"),
    [("adamw", {"momentum": 0.9}, "hyperparameters.momentum"),
     ("kfac", {"lr": 1.0}, "hyperparameters.lr"),
     ("sgd", {"momentum": -1.0}, "Invalid momentum")],
)  # fmt: skip
def test_a_hyperparameter_of_another_optimiser_is_refused(name, hyperparameters, named, nets):
    with pytest.raises(FullTrainingConfigError) as refused:
        make_optimizer(nets.residual(), OptimizerConfig(name=name, hyperparameters=hyperparameters))
    assert named in str(refused.value)
