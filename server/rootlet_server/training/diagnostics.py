"""What can be known of a trained model beyond its loss: where it is, and how it would go on.

* gradient norm of each layer, over some examples;
* gradient noise scale ``B = tr(Sigma) / |G|^2`` (McCandlish et al. 2018), the batch beyond which
  larger batches stop paying, from the norms at two sizes b < B of batch:
  ``|G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)``, ``tr(Sigma) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)``;
* sharpness, the Hessian's top eigenvalue, by power iteration (a step beyond 2 / sharpness is
  unstable for gradient descent);
* expected calibration error over 15 bins of confidence (Naeini et al. 2015; Guo et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rootlet_server.training.curvature import hessian_product, top_eigenvalue, trained
from rootlet_server.training.data import epoch_rows, in_order
from rootlet_server.training.evaluate import BATCH, evaluate_model
from rootlet_server.training.losses import example_losses

if TYPE_CHECKING:
    from rootlet_server.training.data import Source, TrainingData

BINS = 15
SMALL, LARGE, PAIRS = 8, 128, 16
SHARPNESS_EXAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin of confidence: its examples, their mean confidence and their accuracy."""

    examples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """The findings.

    Attributes:
        loss, metric: on the held-out examples (on the training ones, where none are held out).
        gradient_norms: by layer, of the mean loss over up to 256 training examples.
        noise_scale: in examples; None where the gradient is lost in its noise.
        sharpness: top eigenvalue of the Hessian over the same examples.
        calibration_error: 0 to 1; None for regression.
        bins: of confidence; empty for regression.
    """

    loss: float
    metric: float
    gradient_norms: dict[str, float]
    noise_scale: float | None
    sharpness: float
    calibration_error: float | None
    bins: tuple[Bin, ...]


def diagnose(model: nn.Module, data: TrainingData, task: str, *, seed: int = 0) -> Diagnostics:
    """Look at a model on its own device; parameters, gradients and mode are left as they are."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    x, y = _some(data.train, SHARPNESS_EXAMPLES, seed, device)
    rng = torch.Generator().manual_seed(seed)
    measured = data.held_out or data.train
    loss, metric = evaluate_model(model, measured, task, device)
    error, bins = calibration(model, measured, device) if task == "classification" else (None, ())
    found = Diagnostics(
        loss=loss,
        metric=metric,
        gradient_norms=gradient_norms(model, task, x, y),
        noise_scale=noise_scale(model, task, data.train, seed),
        sharpness=top_eigenvalue(
            hessian_product(model, task, x, y), list(trained(model).values()), rng
        ),
        calibration_error=error,
        bins=bins,
    )
    model.train(training)
    return found


def _some(source: Source, count: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = epoch_rows(len(source), min(count, len(source)), seed, 0)[:1]
    x, y = next(source.batches(rows, 0))
    return x.to(device), y.to(device)


def _gradient(model: nn.Module, task: str, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    parameters = trained(model)
    loss = example_losses(task, model(x), y).mean()
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: g for n, g in zip(parameters, grads, strict=True) if g is not None}


def gradient_norms(model: nn.Module, task: str, x: Tensor, y: Tensor) -> dict[str, float]:
    """``|dL/dW|`` of each layer's tensors together."""
    squares: dict[str, float] = {}
    for name, g in _gradient(model, task, x, y).items():
        layer = name.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0.0) + float(g.double().square().sum())
    return {layer: math.sqrt(total) for layer, total in squares.items()}


def noise_scale(model: nn.Module, task: str, source: Source, seed: int) -> float | None:
    """``tr(Sigma) / |G|^2`` in examples; None where the estimate of ``|G|^2`` is not positive."""
    device = next(model.parameters()).device
    large = min(LARGE, len(source))
    small = min(SMALL, large // 2)
    squares = {}
    for size in (small, large):
        rows = [
            row for epoch in range(PAIRS) for row in epoch_rows(len(source), size, seed, epoch)[:1]
        ]
        norms = [
            sum(float(g.double().square().sum()) for g in _gradient(model, task, x, y).values())
            for x, y in ((a.to(device), b.to(device)) for a, b in source.batches(rows, 0))
        ]
        squares[size] = sum(norms) / len(norms)
    mean = (large * squares[large] - small * squares[small]) / (large - small)
    spread = (squares[small] - squares[large]) / (1 / small - 1 / large)
    return spread / mean if mean > 0 and spread > 0 else None


def calibration(
    model: nn.Module, source: Source, device: torch.device
) -> tuple[float, tuple[Bin, ...]]:
    """(``sum_b n_b / n |accuracy_b - confidence_b|``, the bins that hold examples)."""
    confidences, rights = [], []
    with torch.no_grad():
        for x, y in source.batches(in_order(len(source), BATCH), 0):
            confidence, answer = model(x.to(device)).float().softmax(1).max(1)
            confidences.append(confidence.cpu().double())
            rights.append((answer.cpu() == y).double())
    return calibration_error(torch.cat(confidences), torch.cat(rights))


def calibration_error(confidence_N: Tensor, right_N: Tensor) -> tuple[float, tuple[Bin, ...]]:
    """The same from confidences [N] in 0..1 and rights [N], 0 or 1."""
    number_N = (confidence_N * BINS).long().clamp(0, BINS - 1)
    bins, error = [], 0.0
    for n in range(BINS):
        inside = number_N == n
        if count := int(inside.sum()):
            found = Bin(
                examples=count,
                confidence=float(confidence_N[inside].mean()),
                accuracy=float(right_N[inside].mean()),
            )
            bins.append(found)
            error += count / len(right_N) * abs(found.accuracy - found.confidence)
    return error, tuple(bins)
