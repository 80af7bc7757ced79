"""Training with the roundings of a bundle's int8 or int4 base in the forward pass.

Every Linear layer and convolution but the head multiplies rounded weights and rounded activations,
on the grids on which the compiler stores and computes them; the derivative passes straight through
(Bengio et al. 2013), zero beyond the grid's ends for learned steps.

| | weights | activations |
|---|---|---|
| qat | ``s = max|w| / Q`` of each output channel | see below |
| lsq | s is learned, of each output channel (Esser et al. 2020) | see below |

with ``w ~ s clip(round(w / s), -Q, Q)`` and Q = 127, or 7 in blocks of 32 inputs for int4 linear
weights. Activations in front of linear layers have a scale for each row, those in front of
convolutions a range for the tensor, followed over the batches. LSQ's gradient of s is

    d w / d s = round(w/s) - w/s inside, +-Q outside, times 1 / sqrt(entries Q)

Of ``torch.ao`` and torchao neither rounds rows and channels on these grids
(``docs/decisions/0013-quantisers.md``). Depthwise and narrow convolutions stay in float, as in the
compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rootlet_server.compiler.conv_ranges import SMALLEST_CHANNELS
from rootlet_server.compiler.int4 import BLOCK
from rootlet_server.compiler.int8 import TINY
from rootlet_server.training.errors import FullTrainingConfigError

if TYPE_CHECKING:
    from rootlet_server.training.config import FullTrainingConfig

LEVELS = {8: 127, 4: 7}
FOLLOW = 0.1  # of a new range in the running one
ROUNDER = "activation_rounder"


def straight_through_round(values: Tensor) -> Tensor:
    """round(values), with the derivative of the identity."""
    return values + (values.round() - values).detach()


def grouped(weight: Tensor, bits: int) -> Tensor:
    """[groups, entries]: an output channel each, or blocks of 32 inputs of one for int4."""
    rows = weight.flatten(1)
    return rows.reshape(-1, BLOCK) if bits == 4 else rows


class RangeGrid(nn.Module):
    """Weights on the grid of their own largest magnitude."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight."""
        groups, levels = grouped(weight, self.bits), LEVELS[self.bits]
        scale = groups.detach().abs().amax(1, keepdim=True).clamp_min(TINY) / levels
        return (straight_through_round(groups / scale) * scale).view_as(weight)


class _LearnedStep(torch.autograd.Function):
    """LSQ's rounding of groups [g, n] by steps [g, 1]."""

    @staticmethod
    def forward(ctx: Any, groups: Tensor, step: Tensor, levels: int) -> Tensor:
        scaled = groups / step
        ctx.save_for_backward(scaled, step)
        ctx.levels = levels
        rounded: Tensor = scaled.round().clamp(-levels, levels) * step
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        scaled, _ = ctx.saved_tensors
        levels = ctx.levels
        inside = scaled.abs() <= levels
        by_step = torch.where(inside, scaled.round() - scaled, scaled.sign() * levels)
        gain = 1 / (scaled.shape[1] * levels) ** 0.5
        return grad * inside, (grad * by_step).sum(1, keepdim=True) * gain, None


class LearnedGrid(nn.Module):
    """Weights on a grid whose steps learn; they begin at ``2 mean|w| / sqrt(Q)``.

    A step that would shrink to nothing is held at the smallest magnitude float32 divides by.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        mean = grouped(weight.detach(), bits).abs().mean(1, keepdim=True)
        self.step = nn.Parameter((2 * mean / LEVELS[bits] ** 0.5).clamp_min(TINY))

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight."""
        groups = grouped(weight, self.bits)
        rounded: Tensor = _LearnedStep.apply(  # type: ignore[no-untyped-call]
            groups, self.step.clamp_min(TINY), LEVELS[self.bits]
        )
        return rounded.view_as(weight)


class RowRounder(nn.Module):
    """A linear layer's inputs, each row on the grid of its largest magnitude."""

    def forward(self, x: Tensor) -> Tensor:
        """x, rounded."""
        scale = x.detach().abs().amax(-1, keepdim=True).clamp_min(TINY) / LEVELS[8]
        return straight_through_round(x / scale) * scale


class RangeRounder(nn.Module):
    """A convolution's inputs on 255 steps of a running range, which holds zero."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x, rounded; in training the range follows."""
        if self.training:
            low, high = x.detach().amin().clamp_max(0), x.detach().amax().clamp_min(0)
            first = bool(self.low == self.high)
            self.low.lerp_(low, 1.0 if first else FOLLOW)
            self.high.lerp_(high, 1.0 if first else FOLLOW)
        scale = (self.high - self.low).clamp_min(TINY) / 255
        lowest = (self.low / scale).round()
        inside = (x / scale).clamp(lowest, lowest + 255)
        return straight_through_round(inside) * scale


def add_quantisers(model: nn.Module, config: FullTrainingConfig, head: str | None = None) -> None:
    """Put the roundings into a model, in place; its head, the last Linear layer, stays in float.

    Raises:
        FullTrainingConfigError: there is nothing to round.
    """
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and _rounds(module)
    }
    linear = [path for path, module in layers.items() if isinstance(module, nn.Linear)]
    layers.pop(head or (linear[-1] if linear else ""), None)
    if not layers:
        raise FullTrainingConfigError(
            f"quantiser={config.quantiser!r}: no layer but the head has an int8 form in a bundle. "
            "Use quantiser='off'."
        )
    for module in layers.values():
        bits = 4 if config.weight_bits == 4 and _takes_int4(module) else 8
        weight: Tensor = module.weight
        grid = RangeGrid(bits) if config.quantiser == "qat" else LearnedGrid(weight, bits)
        parametrize.register_parametrization(module, "weight", grid)
        if bits == 8:  # an int4 layer multiplies float activations
            rounder = RowRounder() if isinstance(module, nn.Linear) else RangeRounder()
            module.add_module(ROUNDER, rounder)
            module.register_forward_pre_hook(_round_input)


def remove_quantisers(model: nn.Module, config: FullTrainingConfig) -> nn.Module:
    """Take them out again: plain weights, on their learned grid where there is one."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and parametrize.is_parametrized(
            module, "weight"
        ):
            parametrize.remove_parametrizations(
                module, "weight", leave_parametrized=config.quantiser == "lsq"
            )
            if hasattr(module, ROUNDER):
                delattr(module, ROUNDER)
            module._forward_pre_hooks = type(module._forward_pre_hooks)(
                (key, hook)
                for key, hook in module._forward_pre_hooks.items()
                if hook is not _round_input
            )
    return model


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    rounder: Any = getattr(module, ROUNDER)
    return (rounder(args[0]), *args[1:])


def _rounds(module: nn.Linear | nn.Conv1d | nn.Conv2d) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return module.groups == 1 and min(module.weight.shape[:2]) >= SMALLEST_CHANNELS


def _takes_int4(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % BLOCK == 0
