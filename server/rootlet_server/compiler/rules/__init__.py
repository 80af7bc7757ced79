"""Rules: how credit is assigned. One file per rule, one signature, this registry.

A rule is a pure function ``rule(learner, frozen, adapter, x, y, w) -> Gradients``; it exports, it
stacks under ``torch.func.vmap`` and it runs in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rootlet_server.compiler.rules.backprop import backprop
from rootlet_server.compiler.rules.dfa import dfa

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlet_server.compiler.rules.gradients import Gradients


@dataclass(frozen=True)
class Rule:
    """A rule and what it needs from the compiler.

    Attributes:
        gradients: the pure function.
        needs_feedback: whether feedback matrices are calibrated and shipped.
        uses_autograd: whether it must be traced through autograd before it can be exported.
    """

    gradients: Callable[..., Gradients]
    needs_feedback: bool
    uses_autograd: bool


RULES: dict[str, Rule] = {
    "backprop": Rule(backprop, needs_feedback=False, uses_autograd=True),
    "dfa": Rule(dfa, needs_feedback=True, uses_autograd=False),
}

__all__ = ["RULES", "Rule"]
