"""Eight clients stacked under ``torch.func.vmap`` are the eight clients one by one."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
@pytest.mark.parametrize("rule", ["dfa", "backprop"])
@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit", "tokens", "folded"])
def test_stacked_clients_are_single_clients(lab, name, rule, base_dtype):
    assert_stacked_are_single(lab, name, rule, base_dtype)


@pytest.mark.parametrize(
    "rule", ["dfa_blocks", "backprop_checkpointed", "local_losses", "zeroth_order"]
)
@pytest.mark.parametrize("name", ["residual_cnn", "vit"])
def test_stacked_clients_of_other_rules(lab, name, rule):
    # The difference of two losses near 2, each known to 1e-7, is divided by 2e-3 and is near 1.
    assert_stacked_are_single(lab, name, rule, "float32", 1e-3 if rule == "zeroth_order" else 1e-5)


def assert_stacked_are_single(lab, name, rule, base_dtype, tolerance=1e-5):
    case, built = lab.case(name), lab.built(name, rule=rule, base_dtype=base_dtype)
    clients = [lab.stirred(built, seed).adapter for seed in range(8)]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, len(case.x), (8, 6), generator=generator)
    x, y, w = case.x[rows], case.y[rows], torch.rand(8, 6, generator=generator)
    rate = torch.tensor(0.1)

    def train(adapter, x, y, w):
        return built.step.train(built.frozen, adapter, {}, x, y, w, rate, torch.tensor(3.0))

    stacked = {key: torch.stack([c[key] for c in clients]) for key in built.adapter}
    with torch.no_grad():
        loss, metric, together, _ = torch.func.vmap(train)(stacked, x, y, w)
        for i, client in enumerate(clients):
            alone = train(client, x[i], y[i], w[i])
            torch.testing.assert_close(loss[i], alone[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(metric[i], alone[1])
            for key, value in alone[2].items():
                difference = (together[key][i] - value).norm() / value.norm()
                assert difference < tolerance, key
