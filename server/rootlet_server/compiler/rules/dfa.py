"""Direct feedback alignment (Noekland 2016) on adapters, with feedback from the frozen tensors.

With e_n = d loss_n / d z_n the output error, M_l the feedback matrix of site l and v_p its
position weights,

    delta_{n,p} = v_p (e_n M_l) * f'(a_{n,p})
    dB = s sum_{n,p} c_n delta_{n,p} (A h_{n,p})^T        dA = s sum_{n,p} c_n (B^T delta_{n,p})
    h_{n,p}^T

with c_n = w_n / sum w. The head learns by its exact gradient. One broadcast of the error replaces
the backward pass: no frozen weight is read twice, and with a frozen A only the r numbers A h are
kept per example and position. With one hidden layer and M = W_head, DFA is backpropagation.

Shape legend: N examples, P positions, K outputs, C adapted channels, r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.feedback import feedback_keys, feedback_matrix
from rootlet_server.compiler.losses import SMALLEST_WEIGHT, loss_terms, weighted_mean
from rootlet_server.compiler.rules.gradients import Gradients

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner, Tap
    from rootlet_server.compiler.sites import Site


def dfa(  # noqa: PLR0917 (the signature of every rule)
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    w: Tensor,
) -> Gradients:
    """Gradients of the adapters by one broadcast of the output error."""
    forward = learner.forward(frozen, adapter, x)
    terms = loss_terms(learner.task, forward.output, y)
    error_NK = terms.error * (w / w.sum().clamp_min(SMALLEST_WEIGHT)).unsqueeze(1)
    head = learner.head.module
    by_name = {f"{head}.weight": error_NK.t() @ forward.features}
    if f"{head}.bias" in adapter:
        by_name[f"{head}.bias"] = error_NK.sum(0)
    for site in learner.sites:
        b_out_r = adapter[f"{site.module}.lora_B"]
        tap = forward.taps[site.node]
        grads = _site_gradients(learner, site, frozen, b_out_r, tap, error_NK)
        for name, grad in grads.items():  # a layer that is called twice has two sites
            by_name[name] = by_name[name] + grad if name in by_name else grad
    return Gradients(
        loss=weighted_mean(terms.loss, w),
        metric=weighted_mean(terms.metric, w),
        by_name=by_name,
    )


def _site_gradients(  # noqa: PLR0917 (all that one site needs)
    learner: Learner,
    site: Site,
    frozen: Mapping[str, Tensor],
    b_out_r: Tensor,
    tap: Tap,
    error_NK: Tensor,
) -> dict[str, Tensor]:
    broadcast_NC = error_NK @ feedback_matrix(site, frozen, error_NK.dtype)
    derivative = site.chain.derivative(frozen, tap.output)
    h = None if tap.inputs is None else site.rows(tap.inputs)
    z = tap.projected
    if derivative is not None:
        derivative = site.adapted(site.rows(derivative))
    if z.dim() == 2:
        delta = broadcast_NC if derivative is None else broadcast_NC * derivative
    else:  # the weights of the positions go on the narrow side: r numbers a position, not C
        v_P1 = frozen[feedback_keys(site)[2]].to(error_NK.dtype).unsqueeze(-1)
        z, h = z * v_P1, None if h is None else h * v_P1
        if derivative is None:  # delta is the same at every position: pool instead of spreading it
            delta, z, h = broadcast_NC, z.sum(1), None if h is None else h.sum(1)
        else:
            delta = (broadcast_NC.unsqueeze(1) * derivative).flatten(0, 1)
            z, h = z.flatten(0, 1), None if h is None else h.flatten(0, 1)
    grads = {f"{site.module}.lora_B": delta.t() @ z}
    if h is not None:
        grads[f"{site.module}.lora_A"] = learner.scale * ((delta @ b_out_r).t() @ h)
    return grads
