"""Direct feedback alignment (Noekland 2016) on adapters, with feedback from the frozen tensors.

With u_n the signal of the feedback (the output error e_n = d loss_n / d z_n, in most), M_l the
feedback matrix of site l and v_p its position weights,

    delta_{n,p} = v_p (u_n M_l) * f'(a_{n,p})

takes the place of the error at the site's output. The head learns by its exact gradient. One
broadcast of the error replaces the backward pass: no frozen weight is read twice, and with a frozen
A only the r numbers A h are kept per example and position. With one hidden layer and M = W_head,
DFA is backpropagation.

Shape legend: N examples, P positions, K outputs, C adapted channels, r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.feedback import broadcast_signal, feedback_signal, positions_key
from rootlet_server.compiler.losses import loss_terms
from rootlet_server.compiler.rules.credit import Factored
from rootlet_server.compiler.rules.site_gradients import add_site, head_outers, site_factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.rules.credit import Batch


def dfa(
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    batch: Batch,
    weights_N: Tensor,
) -> Factored:
    """Gradients of the adapters by one broadcast of the output error."""
    forward = learner.forward(frozen, adapter, batch.x)
    terms = loss_terms(learner.task, forward.output, batch.y)
    error_NK = terms.error * weights_N.unsqueeze(1)
    outers = head_outers(learner.head, adapter, error_NK, forward.features)
    signal_NK = feedback_signal(learner, adapter, terms, batch.y, weights_N)
    for site in learner.sites:
        tap = forward.taps[site.node]
        broadcast_NC = broadcast_signal(learner, site, frozen, signal_NK)
        weights_P = frozen.get(positions_key(site.node))
        factors = site_factors(site, frozen, tap, broadcast_NC, weights_P)
        add_site(outers, learner, site, adapter, *factors)
    return Factored(loss=terms.loss, metric=terms.metric, outers=outers)
