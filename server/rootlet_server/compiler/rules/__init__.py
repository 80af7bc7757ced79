"""Rules: how credit is assigned. One file per rule, one signature, this registry.

A rule is a pure function ``rule(learner, frozen, adapter, batch, weights_N) -> Credit``: the loss
of each example and its gradient, times the example's weight, in factors that can be normed and
clipped before they are added up. It exports, it stacks under ``torch.func.vmap`` and it runs in
float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rootlet_server.compiler.rules.backprop import backprop, backprop_gradients
from rootlet_server.compiler.rules.checkpointed import checkpointed, checkpointed_gradients
from rootlet_server.compiler.rules.credit import Batch, Credit, Gradients
from rootlet_server.compiler.rules.dfa import dfa
from rootlet_server.compiler.rules.dfa_blocks import dfa_blocks, dfa_blocks_gradients
from rootlet_server.compiler.rules.head_only import head_only
from rootlet_server.compiler.rules.local_losses import local_losses
from rootlet_server.compiler.rules.zeroth_order import zeroth_order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner

    Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule and what it needs from the compiler.

    Attributes:
        credit: the pure function.
        shortcut: where the sum over examples is had more cheaply than from the factors: the
            function that returns it.
        needs_feedback: whether feedback matrices are calibrated and shipped.
        uses_autograd: whether it must be traced through autograd before it can be exported.
        adapts_base: whether sites in the base learn, or the head alone.
        needs_step: whether it reads the step, counted from 1.
        local_heads: whether every site has an auxiliary head, which is part of the adapter.
        biased: whether its gradients point another way than the true ones, also on average.
    """

    credit: Callable[..., Credit]
    shortcut: Callable[..., Gradients] | None = None
    needs_feedback: bool = False
    uses_autograd: bool = False
    adapts_base: bool = True
    needs_step: bool = False
    local_heads: bool = False
    biased: bool = False

    def gradients(
        self, learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
    ) -> Gradients:
        """``sum_n weights_n g_n`` with the losses and metrics of the examples."""
        if self.shortcut is not None:
            return self.shortcut(learner, frozen, adapter, batch, weights_N)
        credit = self.credit(learner, frozen, adapter, batch, weights_N)
        return Gradients(loss=credit.loss, metric=credit.metric, by_name=credit.total())


RULES: dict[str, Rule] = {
    "backprop": Rule(credit=backprop, shortcut=backprop_gradients, uses_autograd=True),
    "backprop_checkpointed": Rule(
        credit=checkpointed, shortcut=checkpointed_gradients, uses_autograd=True
    ),
    "dfa": Rule(credit=dfa, needs_feedback=True, biased=True),
    "dfa_blocks": Rule(
        credit=dfa_blocks,
        shortcut=dfa_blocks_gradients,
        needs_feedback=True,
        uses_autograd=True,
        biased=True,
    ),
    "head_only": Rule(credit=head_only, adapts_base=False),
    "local_losses": Rule(credit=local_losses, local_heads=True, biased=True),
    "zeroth_order": Rule(credit=zeroth_order, needs_step=True),
}

__all__ = ["RULES", "Batch", "Credit", "Gradients", "Rule"]
