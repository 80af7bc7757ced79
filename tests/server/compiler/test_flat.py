"""The flattened step has the step's numbers."""

import pytest
import torch

from rootlet_server.compiler.flat import flat


@pytest.mark.parametrize(
    ("name", "options"),
    [("mlp", {"rule": "backprop"}), ("mlp", {}), ("residual_cnn", {}), ("vit_gpt", {})],
)
def test_the_numbers_are_the_steps_own(lab, name, options):
    """Stacked over three rates; the second call has other numbers than those it was traced with."""
    case, built = lab.case(name), lab.built(name, **options)

    def update(adapter, rate, x, y):
        return built.step.train(built.frozen, adapter, {}, x, y, torch.ones(len(y)), rate)[2]

    run = torch.func.vmap(update, (0, 0, None, None))
    adapter = {key: torch.stack([value] * 3) for key, value in built.adapter.items()}
    rates = torch.tensor([0.01, 0.03, 0.1])
    with torch.no_grad():
        found = flat(run, adapter, rates, case.x[:4], case.y[:4])
        for x, y, rate in ((case.x[:4], case.y[:4], rates), (case.x[4:8], case.y[4:8], rates / 2)):
            expected = run(adapter, rate, x, y)
            for key, value in found(adapter, rate, x, y).items():
                assert torch.equal(value, expected[key]), key
            adapter = expected
