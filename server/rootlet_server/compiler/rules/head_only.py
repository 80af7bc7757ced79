"""Only the head learns: the floor that every other rule has to beat.

Nothing is asked of the base but its features; there are no sites and no adapters in it.

Shape legend: N examples, K outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.losses import loss_terms
from rootlet_server.compiler.rules.credit import Factored
from rootlet_server.compiler.rules.site_gradients import head_outers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.rules.credit import Batch


def head_only(
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    batch: Batch,
    weights_N: Tensor,
) -> Factored:
    """The head's exact gradient, ``dW_n = e_n f_n^T`` and ``db_n = e_n``."""
    forward = learner.forward(frozen, adapter, batch.x)
    terms = loss_terms(learner.task, forward.output, batch.y)
    error_NK = terms.error * weights_N.unsqueeze(1)
    outers = head_outers(learner.head, adapter, error_NK, forward.features)
    return Factored(loss=terms.loss, metric=terms.metric, outers=outers)
