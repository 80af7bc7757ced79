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
``jacobians.position_weights``, or there is one matrix for each position, [K, P C]; the others
spread evenly, 1/P.

Shape legend: N examples, P positions, K outputs (or features), C channels, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rootlet_server.compiler.broadcast import centred, stays_int8
from rootlet_server.compiler.errors import CalibrationError
from rootlet_server.compiler.feedback_forms import project, stored
from rootlet_server.compiler.jacobians import mean_jacobians, position_weights
from rootlet_server.compiler.losses import targets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rootlet_server.compiler.config import CompileConfig, FeedbackForm
    from rootlet_server.compiler.jacobians import Of
    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.losses import LossTerms

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
        return targets(learner.task, terms.error, y) * -weights_N.unsqueeze(1)
    error_NK = terms.error * weights_N.unsqueeze(1)
    if learner.feedback == "calibrated_features":
        return error_NK @ adapter[f"{learner.head.module}.weight"]
    return error_NK


class Place(Protocol):
    """A site or the top of a block: where feedback arrives."""

    @property
    def node(self) -> str:
        """Names the tensors."""

    @property
    def width(self) -> int:
        """C."""


def broadcast_signal(learner: Learner, place: Place, frozen: Tensors, signal_NK: Tensor) -> Tensor:
    """``u M`` at a site or top: [N, C], or [N, P, C] where each position has its own M."""
    if learner.feedback == "broadcast":
        return project(SHARED, frozen, signal_NK)[:, : place.width]
    arriving = project(place.node, frozen, signal_NK)
    if arriving.shape[-1] == place.width:
        return arriving
    return arriving.reshape(arriving.shape[0], -1, place.width)


@dataclass(frozen=True)
class _Target:
    """What a matrix is made for: its key, the node, its value as rows, their sizes, its layer."""

    key: str
    at: str
    rows: Callable[[Tensor], Tensor]
    width: int
    positions: int
    module: str


def _targets_of(learner: Learner) -> list[_Target]:
    if learner.points is not None:
        return [
            _Target(p.node, p.node, p.rows, p.width, p.positions, p.module) for p in learner.points
        ]
    return [
        _Target(s.node, s.chain.point, s.adapted_rows, s.width, s.positions, s.module)
        for s in learner.sites
    ]


def make_feedback(
    learner: Learner,
    frozen: Tensors,
    adapter: Tensors,
    x: Tensor,
    config: CompileConfig,
) -> dict[str, Tensor]:
    """The frozen tensors that ``learner.feedback`` needs.

    Args:
        learner: the learner.
        frozen: its tensors; the base is best still in floating point.
        adapter: the initial adapter.
        x: calibration batch [N, ...].
        config: how calibrated matrices are made and stored, and what seeds those drawn at random.

    Raises:
        CalibrationError: the Jacobian is not finite.
    """
    targets = _targets_of(learner)
    if not targets:
        return {}  # only the head learns, or all credit is exact
    if learner.feedback == "sign":
        draw = _gaussian(learner, config.seed)
        return _calibrated(
            learner,
            targets,
            (frozen, adapter, x),
            lambda m: m.sign() * draw(m.shape[1]).abs(),
            at_once=config.calibration_outputs,
        )
    if learner.feedback in CALIBRATED:
        return _calibrated(
            learner,
            targets,
            (frozen, adapter, x),
            lambda matrix: matrix,
            form=config.feedback_form,
            rank=config.feedback_rank,
            each_position=config.feedback_positions == "each",
            at_once=config.calibration_outputs,
        )
    return _random(learner, targets, config.seed)


def _gaussian(learner: Learner, seed: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs: int = learner.program.num_outputs
    return lambda width: torch.randn(outputs, width, generator=generator) / outputs**0.5


def _random(learner: Learner, targets: list[_Target], seed: int) -> dict[str, Tensor]:
    draw = _gaussian(learner, seed)
    result: dict[str, Tensor] = {}
    if learner.feedback == "broadcast":
        result |= stored(SHARED, draw(max(target.width for target in targets)))
    for target in targets:
        if learner.feedback != "broadcast":
            result |= stored(target.key, draw(target.width))
        if target.positions > 1:
            even = torch.full((target.positions,), 1 / target.positions)
            result[positions_key(target.key)] = even
    return result


def _calibrated(
    learner: Learner,
    targets: list[_Target],
    over: tuple[Tensors, Tensors, Tensor],
    change: Callable[[Tensor], Tensor],
    *,
    form: FeedbackForm = "int8",
    rank: int = 8,
    each_position: bool = False,
    at_once: int = 1,
) -> dict[str, Tensor]:
    points = {target.at: target.rows for target in targets}
    of_features = learner.feedback == "calibrated_features"
    of: Of = "features" if of_features else "output"
    jacobians = mean_jacobians(learner, *over, points, of=of, at_once=at_once)
    result: dict[str, Tensor] = {}
    for target in targets:
        per_position = jacobians[target.at]
        check_finite(per_position, target.module)
        weights = None if each_position else position_weights(per_position)
        matrix = per_position.flatten(1) if each_position else per_position.sum(1)
        if _sums_to_zero(learner) and form == "int8" and stays_int8(*matrix.shape):
            matrix = centred(matrix)
        result |= stored(target.key, change(matrix), form, rank)
        if weights is not None:
            result[positions_key(target.key)] = weights
    return result


def _sums_to_zero(learner: Learner) -> bool:
    """Whether the entries of the signal do, for each example."""
    return learner.feedback == "calibrated" and learner.task == "classification"


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
