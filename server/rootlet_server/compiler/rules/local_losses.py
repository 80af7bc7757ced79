"""A linear classifier of its own for every site: local losses instead of credit from the output.

With g_{n,p} the value at a site's feedback point and an auxiliary head (V, c),

    q_n = V mean_p g_{n,p} + c,    e_n = d loss(q_n, y_n) / d q_n
    delta_{n,p} = (1/P) (e_n V) * f'(a_{n,p})

is the exact error of the site's own loss, which no other layer sees (Noekland & Eidnes 2019;
Belilovsky et al. 2019). The auxiliary heads learn with the adapter; the model's own head learns by
its exact gradient, and loss and metric are the model's own.

Shape legend: N examples, P positions, K outputs, C adapted channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.local_heads import local_head_names, pooled
from rootlet_server.compiler.losses import loss_terms
from rootlet_server.compiler.rules.credit import Factored, Outer
from rootlet_server.compiler.rules.site_gradients import add_site, head_outers, site_factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.rules.credit import Batch


def local_losses(
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    batch: Batch,
    weights_N: Tensor,
) -> Factored:
    """Gradients of every site and auxiliary head from the site's own loss."""
    keep = {site.chain.point for site in learner.sites}
    forward = learner.forward(frozen, adapter, batch.x, keep=keep)
    terms = loss_terms(learner.task, forward.output, batch.y)
    outers = head_outers(
        learner.head, adapter, terms.error * weights_N.unsqueeze(1), forward.features
    )
    for site in learner.sites:
        weight, bias = local_head_names(site)
        g_NC = pooled(site, forward.kept[site.chain.point])
        local = loss_terms(learner.task, g_NC @ adapter[weight].t() + adapter[bias], batch.y)
        error_NK = local.error * weights_N.unsqueeze(1)
        outers[weight] = (*outers.get(weight, ()), Outer(error_NK, g_NC))
        outers[bias] = (*outers.get(bias, ()), Outer(error_NK, None))
        tap = forward.taps[site.node]
        factors = site_factors(site, frozen, tap, error_NK @ adapter[weight], 1 / site.positions)
        add_site(outers, learner, site, adapter, *factors)
    return Factored(loss=terms.loss, metric=terms.metric, outers=outers)
