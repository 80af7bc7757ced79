"""Many outputs in one backward pass give the feedback of one at a time, in every form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rootlet_server.compiler import CompileConfig, CompileError, LoraConfig, build


class Mixed(nn.Module):
    """A convolution, attention over its positions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, x):
        return self.head(self.encoder(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(
    "changes",
    [{}, {"feedback": "calibrated_features"}, {"feedback_form": "low_rank", "feedback_rank": 3},
     {"feedback_form": "sign"}, {"calibration": "noise"}],
)  # fmt: skip
def test_the_feedback_is_the_same(changes):
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(40, 1, 8, 8)  # more than one chunk of 32
    one = CompileConfig(adapter=LoraConfig(rank=2), base_dtype="float32", **changes)
    many = replace(one, calibration_outputs=3)  # 7 outputs: 3, 3 and 1
    found, expected = (build(model, x, config).frozen for config in (many, one))
    keys = [key for key in expected if ":feedback" in key]
    assert keys
    for key in keys:
        # float32 in another order; a value at a border of int8 may round to its neighbour.
        atol = 1 if expected[key].dtype == torch.int8 else 1e-5
        difference = (found[key].double() - expected[key].double()).abs()
        assert float(difference.max()) <= atol
        assert float((difference > 1e-5).double().mean()) < 0.01


def test_none_at_once_is_refused():
    with pytest.raises(CompileError, match="calibration_outputs=0"):
        CompileConfig(calibration_outputs=0)
