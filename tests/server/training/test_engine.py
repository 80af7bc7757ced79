"""Parts, recomputation, compilation and half precision change what is computed by rounding only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rootlet_server.training import EngineConfig, FullTrainingConfig, train
from rootlet_server.training.blocks import find_blocks, recomputed
from rootlet_server.training.errors import FullTrainingConfigError

# As in test_processes: 60 terms in another order, 14 steps, on the way that the weights have gone.
ROUNDING = 60 * 14 * 2.0**-24


@pytest.fixture(scope="module")
def plain(nets):
    start = nets.flat(nets.residual())
    end = nets.flat(train(nets.residual(), nets.digits(), nets.config()).model)
    return end, float((end - start).abs().max())


@pytest.mark.parametrize(
    ("engine", "bound"),
    [
        ({"accumulation": 3}, ROUNDING),
        ({"checkpointing": True}, ROUNDING),  # recomputed elsewhere in memory: another order
        ({"compile": "aot_eager"}, ROUNDING),
        # bf16 rounds each product to 2^-8; fourteen steps add up to fourteen of those at most.
        ({"precision": "bf16"}, 14 * 2.0**-8),
    ],
)
def test_it_is_the_same_training(engine, bound, nets, plain):
    end, way = plain
    found = train(nets.residual(), nets.digits(), nets.config(engine=engine))
    assert float((nets.flat(found.model) - end).abs().max()) <= bound * way


def test_nothing_of_it_stays_in_the_model(nets):
    model = nets.residual()
    engine = {"checkpointing": True, "precision": "bf16"}
    train(model, nets.digits(), nets.config(engine=engine))
    for module in model.modules():
        assert "forward" not in vars(module)
    assert model(torch.zeros(1, 64)).dtype == torch.float32


def test_the_callers_random_numbers_are_left_alone(nets):
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = nets.residual()
    torch.manual_seed(5)
    train(model, nets.digits(), nets.config(training={"epochs": 1}))
    assert torch.equal(torch.rand(3), expected)


def test_dropout_is_drawn_again_as_it_was_in_a_recomputed_block():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(3)))
    x, found = torch.randn(4, 8), []
    for blocks in ([], find_blocks(model)):
        with recomputed(blocks):
            torch.manual_seed(1)
            loss = model(x).square().sum()
            found.append(torch.autograd.grad(loss, list(model.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_blocks_are_found_or_named(nets):
    model = nets.residual()
    assert find_blocks(model) == list(model.layers)
    assert find_blocks(model, ("layers.1",)) == [model.layers[1]]
    with pytest.raises(FullTrainingConfigError, match="'layer'"):
        find_blocks(model, ("layer",))
    assert find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []


def test_checkpointing_without_blocks_is_refused(nets):
    model = nn.Linear(64, 10)
    config = FullTrainingConfig(engine=EngineConfig(checkpointing=True, device="cpu"))
    with pytest.raises(FullTrainingConfigError, match=r"Name them in engine\.blocks"):
        train(model, nets.digits(), config)


def test_cuda_is_refused_where_there_is_none(nets, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # where there is one
    with pytest.raises(FullTrainingConfigError, match="finds no CUDA device"):
        train(nets.residual(), nets.digits(), nets.config(engine={"device": "cuda"}))


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_averages_are_those_of_the_weights(averaging, nets):
    from rootlet_server.training.averages import Averages

    model = nn.Linear(1, 1, bias=False)
    config = FullTrainingConfig(averaging=averaging, ema_decay=0.5)
    averages = Averages(model, config, steps=8)
    for step in range(8):
        model.weight.data.fill_(float(step))
        averages.update(step)
    # swa: the last two of eight; ema: 7/2 + 6/4 + ... + 1/128 + 0/128.
    expected = 6.5 if averaging == "swa" else sum(w / 2 ** (8 - w) for w in range(8))
    assert float(averages.values[0]) == pytest.approx(expected)
    with averages.in_place():
        assert float(model.weight.detach()) == pytest.approx(expected)
    assert float(model.weight.detach()) == 7.0
