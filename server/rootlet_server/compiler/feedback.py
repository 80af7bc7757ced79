"""The feedback matrices: what the server computes once so that a device needs no backward pass.

A site's error is ``v_p (u M)`` with a signal u for each example, a matrix M and a weight v_p for
each of its positions.

| feedback | u | M |
|---|---|---|
| calibrated | e, the error at the outputs | mean Jacobian of the outputs at the feedback point |
| calibrated_features | e W_head through the live head | mean Jacobian of the features |
| random | e | N(0, 1/K) (Lillicrap et al. 2016; Noekland 2016) |
| sign | e | the calibrated signs, magnitudes abs N(0, 1/K) (Liao et al. 2016) |
| broadcast | e | one N(0, 1/K) matrix for all sites, cut to width |
| drtp | minus the target (Frenkel et al. 2021) | N(0, 1/K) |

Calibrated matrices sum the Jacobian over positions and give each position the weight of
``jacobians.position_weights``; the others spread evenly, 1/P.

Shape legend: N examples, P positions, K outputs (or features), C channels, r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.compiler.errors import CalibrationError
from rootlet_server.compiler.feedback_forms import project, stored
from rootlet_server.compiler.jacobians import mean_jacobians, position_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rootlet_server.compiler.config import FeedbackForm
    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.losses import LossTerms
    from rootlet_server.compiler.sites import Site

    Tensors = Mapping[str, Tensor]

CALIBRATED = ("calibrated", "calibrated_features", "sign")
SHARED = "shared"


def positions_key(point: str) -> str:
    """Where the frozen tensors hold the weights v [P] of a site or cut."""
    return f"{point}:feedback.positions"


def feedback_signal(
    learner: Learner,
    adapter: Tensors,
    terms: LossTerms,
    y: Tensor,
    weights_N: Tensor,
) -> Tensor:
    """U times each example's weight, [N, K], or [N, F] for feedback through the features."""
    if learner.feedback == "drtp":
        # The error is output minus target: the target that stands in for it is negative too.
        return _targets(learner, y, terms.error) * -weights_N.unsqueeze(1)
    error_NK = terms.error * weights_N.unsqueeze(1)
    if learner.feedback == "calibrated_features":
        return error_NK @ adapter[f"{learner.head.module}.weight"]
    return error_NK


def _targets(learner: Learner, y: Tensor, like_NK: Tensor) -> Tensor:
    if learner.task == "regression":
        return y
    classes = torch.arange(like_NK.shape[1], device=y.device)
    return (y.unsqueeze(1) == classes).to(like_NK.dtype)


def broadcast_signal(learner: Learner, site: Site, frozen: Tensors, signal_NK: Tensor) -> Tensor:
    """``u M`` at a site, [N, width]."""
    if learner.feedback == "broadcast":
        return project(SHARED, frozen, signal_NK)[:, : site.width]
    return project(site.node, frozen, signal_NK)


def make_feedback(
    learner: Learner,
    frozen: Tensors,
    adapter: Tensors,
    x: Tensor,
    *,
    form: FeedbackForm = "int8",
    rank: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The frozen tensors that ``learner.feedback`` needs.

    Args:
        learner: the learner.
        frozen: its tensors; the base is best still in floating point.
        adapter: the initial adapter.
        x: calibration batch [N, ...].
        form: how calibrated matrices are stored.
        rank: of the low-rank form.
        seed: seeds what is drawn at random.

    Raises:
        CalibrationError: the Jacobian is not finite.
    """
    if not learner.sites:
        return {}  # only the head learns
    if learner.feedback in CALIBRATED:
        return _calibrated(learner, frozen, adapter, x, form=form, rank=rank, seed=seed)
    return _random(learner, seed)


def _gaussian(learner: Learner, seed: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs: int = learner.program.num_outputs
    return lambda width: torch.randn(outputs, width, generator=generator) / outputs**0.5


def _random(learner: Learner, seed: int) -> dict[str, Tensor]:
    draw = _gaussian(learner, seed)
    result: dict[str, Tensor] = {}
    if learner.feedback == "broadcast":
        result |= stored(SHARED, draw(max(site.width for site in learner.sites)))
    for site in learner.sites:
        if learner.feedback != "broadcast":
            result |= stored(site.node, draw(site.width))
        if site.positions > 1:
            even = torch.full((site.positions,), 1 / site.positions)
            result[positions_key(site.node)] = even
    return result


def _calibrated(
    learner: Learner,
    frozen: Tensors,
    adapter: Tensors,
    x: Tensor,
    *,
    form: FeedbackForm,
    rank: int,
    seed: int,
) -> dict[str, Tensor]:
    points = {site.chain.point: _rows_of(site) for site in learner.sites}
    of_features = learner.feedback == "calibrated_features"
    jacobians = mean_jacobians(
        learner, frozen, adapter, x, points, of="features" if of_features else "output"
    )
    draw = _gaussian(learner, seed)
    result: dict[str, Tensor] = {}
    for site in learner.sites:
        per_position = jacobians[site.chain.point]
        check_finite(per_position, site.module)
        matrix = per_position.sum(1)
        weights = position_weights(per_position)
        if learner.feedback == "sign":
            matrix = matrix.sign() * draw(site.width).abs()
        result |= stored(site.node, matrix, form, rank)
        if weights is not None:
            result[positions_key(site.node)] = weights
    return result


def _rows_of(site: Site) -> Callable[[Tensor], Tensor]:
    return lambda value: site.adapted(site.rows(value))


def check_finite(jacobian: Tensor, where: str) -> None:
    """A Jacobian must be finite.

    Raises:
        CalibrationError: it is not.
    """
    if not jacobian.isfinite().all():
        raise CalibrationError(
            f"The Jacobian of the outputs with respect to {where} is not finite over "
            "the calibration data. "
            "Check the model's outputs on it for NaN or infinity."
        )
