"""Multiply-accumulates of a step, counted by operator; the basis of a device's energy estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from rootlet_server.compiler import conv_int8, int8
from rootlet_server.compiler.capture import example_inputs, signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.steps import Step


def _int8_flops(x: Any, weight: Any, scale: Any, *_: Any, **__: Any) -> int:
    rows = 1
    for size in x[:-1]:
        rows *= size
    return int(2 * rows * weight[0] * weight[1])


def _int8_conv_flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(conv_flop_count(x, weight, out_shape))


INT8_FLOPS = {int8.OPERATOR: _int8_flops, conv_int8.OPERATOR: _int8_conv_flops}


def _macs(function: Any) -> tuple[int, int]:
    """(int8, float32) multiply-accumulates of one call."""
    counter = FlopCounterMode(display=False, custom_mapping=INT8_FLOPS)
    with torch.no_grad(), counter:
        function()
    counts = counter.get_flop_counts().get("Global", {})
    in_int8 = sum(counts.get(operator, 0) for operator in INT8_FLOPS) // 2
    return in_int8, sum(counts.values()) // 2 - in_int8


def count_cost(
    step: Step,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    x: Tensor,
    weight_bytes: int,
) -> dict[str, int]:
    """Per example: ``train_macs_{int8,float32}``, ``predict_macs_*``; and ``weight_bytes``."""
    inputs = example_inputs(step, step.encode(frozen, x), adapter)
    batch = {name: inputs[name] for name in signature(step, "train")[0]}
    state = {name: inputs[f"optimizer/{name}"] for name in step.state}
    train = _macs(lambda: step.train(frozen, adapter, state, **batch))
    predict = _macs(lambda: step.predict(frozen, adapter, x))
    n = len(x)
    return {
        "train_macs_int8": train[0] // n,
        "train_macs_float32": train[1] // n,
        "predict_macs_int8": predict[0] // n,
        "predict_macs_float32": predict[1] // n,
        "weight_bytes": weight_bytes,
    }
