"""The feedback matrices: what the server computes once so that a device needs no backward pass.

Calibrated feedback is the mean Jacobian over calibration data,
``M_l = mean_n sum_p d z_n / d g_{l,n,p}`` [K, C], with g the feedback point of site l; it is
stored as int8 with one scale per row. Where a site has positions, each gets a weight ``v_p = <J_p,
M> / <M, M>`` with ``J_p`` the mean Jacobian at position p; the weights sum to one, are 1/P under
mean pooling and 0 or 1 under a class token.

Random feedback draws ``M ~ N(0, 1/K)`` (Lillicrap et al. 2016; Noekland 2016) and spreads it
evenly.

Shape legend: N examples, P positions, K outputs, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.compiler.errors import CalibrationError
from rootlet_server.compiler.int8 import quantize_weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.sites import Site

CHUNK = 32


def feedback_keys(site: Site) -> tuple[str, str, str]:
    """Where the frozen tensors hold a site's int8 matrix, its scale and its position weights."""
    return (
        f"{site.node}:feedback.q",
        f"{site.node}:feedback.scale",
        f"{site.node}:feedback.positions",
    )


def feedback_matrix(site: Site, frozen: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """M [K, width] in floating point."""
    q, scale, _ = feedback_keys(site)
    return frozen[q].to(dtype) * frozen[scale].to(dtype)


def _stored(site: Site, matrix: Tensor, positions: Tensor | None) -> dict[str, Tensor]:
    q_key, scale_key, positions_key = feedback_keys(site)
    q, scale = quantize_weight(matrix, channel_dim=0)
    stored = {q_key: q, scale_key: scale}
    if positions is not None:
        stored[positions_key] = positions
    return stored


def random_feedback(learner: Learner, seed: int) -> dict[str, Tensor]:
    """Gaussian matrices with variance 1/K."""
    generator = torch.Generator().manual_seed(seed)
    stored: dict[str, Tensor] = {}
    outputs = learner.program.num_outputs
    for site in learner.sites:
        matrix = torch.randn(outputs, site.width, generator=generator) / outputs**0.5
        positions = (
            torch.full((site.positions,), 1 / site.positions) if site.positions > 1 else None
        )
        stored |= _stored(site, matrix, positions)
    return stored


def calibrated_feedback(
    learner: Learner, frozen: Mapping[str, Tensor], adapter: Mapping[str, Tensor], x: Tensor
) -> dict[str, Tensor]:
    """The mean Jacobian of the outputs with respect to each feedback point.

    Args:
        learner: the learner; its frozen tensors should still be in floating point.
        frozen: the frozen tensors.
        adapter: the initial adapter.
        x: calibration batch [N, ...], read in chunks of 32.

    Raises:
        CalibrationError: the Jacobian is not finite.
    """
    if not learner.sites:
        return {}  # only the head learns
    totals: dict[str, Tensor] = {}
    for part in torch.split(x, CHUNK):
        for name, jacobian in _jacobians(learner, frozen, adapter, part).items():
            totals[name] = totals.get(name, 0) + jacobian
    stored: dict[str, Tensor] = {}
    for site in learner.sites:
        per_position = totals[site.node] / len(x)
        if not per_position.isfinite().all():
            raise CalibrationError(
                f"The Jacobian of the outputs with respect to {site.module} is not finite over "
                "the calibration data. "
                "Check the model's outputs on it for NaN or infinity."
            )
        matrix = per_position.sum(1)
        stored |= _stored(site, matrix, _position_weights(per_position, matrix))
    return stored


def _position_weights(per_position: Tensor, matrix: Tensor) -> Tensor | None:
    """From J [K, P, C] and M [K, C]: v [P], each position's Jacobian projected on their sum."""
    positions = per_position.shape[1]
    if positions == 1:
        return None
    norm = (matrix * matrix).sum()
    if norm == 0:
        return torch.full((positions,), 1 / positions)
    return torch.einsum("kpc,kc->p", per_position, matrix) / norm


def _jacobians(
    learner: Learner, frozen: Mapping[str, Tensor], adapter: Mapping[str, Tensor], x: Tensor
) -> dict[str, Tensor]:
    """Site node -> sum over examples of d z / d g, [K, P, width]."""
    points = {site.node: site.chain.point for site in learner.sites}
    with torch.enable_grad():
        trainable = {
            name: value.detach().clone().requires_grad_() for name, value in adapter.items()
        }
        forward = learner.forward(frozen, trainable, x, keep=set(points.values()))
        kept = [forward.kept[points[site.node]] for site in learner.sites]
        rows: dict[str, list[Tensor]] = {site.node: [] for site in learner.sites}
        for k in range(forward.output.shape[1]):
            grads = torch.autograd.grad(
                forward.output[:, k].sum(), kept, retain_graph=True, allow_unused=True
            )
            for site, value, grad in zip(learner.sites, kept, grads, strict=True):
                at_site = site.rows(torch.zeros_like(value) if grad is None else grad)
                at_site = at_site if at_site.dim() == 3 else at_site.unsqueeze(1)
                rows[site.node].append(site.adapted(at_site).sum(0))
    return {node: torch.stack(parts).detach() for node, parts in rows.items()}
