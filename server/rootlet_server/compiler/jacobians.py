"""Mean Jacobians of a model's outputs, and what to take them over.

``J_p = mean_n d z_n / d g_{n,p}`` [K, C] is found by one backward pass for each output (or for some
outputs at once) and chunk of examples. On an int8 base it passes straight through the rounding: the
derivative of a plain ``round`` is zero, and so would be everything below it.

Shape legend: N examples, P positions, K outputs (or features), C channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rootlet_server.compiler.learner import Learner

CHUNK = 32
PASSES = 1024  # backward passes that a mean may take, where 32 examples do not need more
NOISE_EXAMPLES = 128
NOISE_DENSITY = 0.25

Of = Literal["output", "features"]


def mean_jacobians(
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    x: Tensor,
    points: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    of: Of = "output",
    at_once: int = 1,
) -> dict[str, Tensor]:
    """The mean Jacobian at every point, by position: [K, P, C].

    Args:
        learner: the learner.
        frozen: its frozen tensors.
        adapter: the initial adapter.
        x: [N, ...], read in chunks of 32; the first ones alone where K is so large that all would
            take more than 1,024 backward passes.
        points: name of a node -> its value as [N, C] or [N, P, C].
        of: what is differentiated: the outputs, or the features that the head reads.
        at_once: how many of them in one backward pass, by vmapped vector-Jacobian products; more
            are faster where there is memory for their gradients.
    """
    totals: dict[str, Tensor] = {}
    width = learner.program.tensors[learner.head.weight].shape[0 if of == "output" else 1]
    x = x[: CHUNK * max(1, PASSES // width)]
    for part in torch.split(x, CHUNK):
        for name, total in _sums(
            learner, frozen, adapter, part, points, of=of, at_once=at_once
        ).items():
            totals[name] = totals.get(name, 0) + total
    return {name: total / len(x) for name, total in totals.items()}


def _sums(
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    x: Tensor,
    points: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    of: Of,
    at_once: int,
) -> dict[str, Tensor]:
    """Node -> sum over examples of d z / d g, [K, P, C]."""
    # Fused attention has no derivative of many outputs at once.
    kernel: Any = sdpa_kernel(SDPBackend.MATH) if at_once > 1 else nullcontext()
    with torch.enable_grad(), kernel:
        trainable = {
            name: value.detach().clone().requires_grad_() for name, value in adapter.items()
        }
        forward = learner.forward(frozen, trainable, x, keep=set(points))
        outputs_NK = forward.output if of == "output" else forward.features
        kept = [forward.kept[node] for node in points]
        rows: dict[str, list[Tensor]] = {node: [] for node in points}
        every_K = torch.eye(outputs_NK.shape[1], dtype=outputs_NK.dtype)
        for seeds_kK in every_K.split(at_once):
            seeds_kNK = seeds_kK.unsqueeze(1).expand(-1, *outputs_NK.shape)
            grads = (
                torch.autograd.grad(
                    outputs_NK,
                    kept,
                    seeds_kNK,
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=True,
                )
                if at_once > 1
                else torch.autograd.grad(
                    outputs_NK, kept, seeds_kNK[0], retain_graph=True, allow_unused=True
                )
            )
            for (node, by_example), value, grad in zip(points.items(), kept, grads, strict=True):
                by_output = (
                    [torch.zeros_like(value)] * len(seeds_kK)
                    if grad is None
                    else (list(grad) if at_once > 1 else [grad])
                )
                for each in by_output:
                    row = by_example(each).sum(0)
                    rows[node].append(row if row.dim() == 2 else row.unsqueeze(0))
    return {node: torch.stack(parts).detach() for node, parts in rows.items()}


def position_weights(per_position: Tensor) -> Tensor | None:
    """From J [K, P, C]: v [P], each position's Jacobian projected on M, the sum of all.

    ``v_p = <J_p, M> / <M, M>``. The weights sum to one; they are 1/P under mean pooling and 0 or 1
    under a class token. None where there is one position.
    """
    positions = per_position.shape[1]
    if positions == 1:
        return None
    matrix = per_position.sum(1)
    norm = (matrix * matrix).sum()
    if norm == 0:
        return torch.full((positions,), 1 / positions, dtype=matrix.dtype)
    return torch.einsum("kpc,kc->p", per_position, matrix) / norm


def sparse_noise(x: Tensor, seed: int, examples: int = NOISE_EXAMPLES) -> Tensor:
    """Random inputs to calibrate on where no data may be used.

    A quarter of the entries are uniform between the smallest and the largest value of ``x``, the
    others are its smallest magnitude's value (zero, where the range holds zero). Token ids are
    uniform over the range of ids. Nothing else of ``x`` is read than shape, dtype and range.

    Args:
        x: [N, ...], of the shape, dtype and range of the model's inputs.
        seed: seeds the noise.
        examples: how many to make.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (examples, *x.shape[1:])
    low, high = x.min(), x.max()
    if x.dtype == torch.int64:
        return torch.randint(int(low), int(high) + 1, shape, generator=generator)
    uniform = torch.rand(shape, generator=generator) * (high - low).float() + low.float()
    rest = torch.zeros(()).clamp(min=float(low), max=float(high))
    drawn = torch.rand(shape, generator=generator) < NOISE_DENSITY
    return torch.where(drawn, uniform, rest).to(x.dtype)
