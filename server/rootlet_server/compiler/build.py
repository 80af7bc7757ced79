"""From a model and calibration data to a step and its tensors: the compiler without its files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rootlet_server.compiler.adapters import (
    choose_ranks,
    frozen_a,
    in_int8,
    initial_adapter,
    input_products,
    needs_products,
    rank_table,
)
from rootlet_server.compiler.base import freeze
from rootlet_server.compiler.block_choice import choose_blocks
from rootlet_server.compiler.blocks import find_points
from rootlet_server.compiler.conv_ranges import conv_ranges
from rootlet_server.compiler.defaults import Architecture, architecture, resolved
from rootlet_server.compiler.errors import CalibrationError, CompileError
from rootlet_server.compiler.feedback import make_feedback
from rootlet_server.compiler.interpret import run
from rootlet_server.compiler.jacobians import CHUNK, sparse_noise
from rootlet_server.compiler.latent import cut
from rootlet_server.compiler.learner import Learner
from rootlet_server.compiler.local_heads import initial_local_heads
from rootlet_server.compiler.rules import RULES
from rootlet_server.compiler.sensitivity import choose_precision
from rootlet_server.compiler.sites import find_head, find_sites
from rootlet_server.compiler.steps import Step
from rootlet_server.compiler.trace import trace

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from rootlet_server.compiler.block_choice import BlockChoice
    from rootlet_server.compiler.config import CompileConfig, LayerDtype
    from rootlet_server.compiler.ranks import SiteRank
    from rootlet_server.compiler.sensitivity import LayerPrecision
    from rootlet_server.compiler.trace import Program

DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.uint8: "uint8"}
EXAMPLES = 4  # enough to trace with; the batch is dynamic


@dataclass(frozen=True, kw_only=True)
class Built:
    """A step and its tensors, in float or int8 as the configuration asks.

    Attributes:
        config: what was asked for, with the rule that the architecture gets in the place of auto.
        step: the pure functions.
        frozen: the base, the feedback and the frozen halves of the adapters.
        adapter: what learns, at its start.
        example: a few calibration examples.
        precision: what was measured and chosen by layer, where the base is ``mixed``.
        ranks: what every adapted layer got.
        left_out: the Linear layers and convolutions without an adapter, and why.
        blocks: what ``block_size="auto"`` chose, where it was asked to.
        chosen_for: the architecture by which ``rule="auto"`` chose, where it did.
    """

    config: CompileConfig
    step: Step
    frozen: dict[str, Tensor]
    adapter: dict[str, Tensor]
    example: Tensor
    precision: tuple[LayerPrecision, ...] = ()
    ranks: tuple[SiteRank, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    blocks: BlockChoice | None = None
    chosen_for: Architecture | None = None


def as_calibration(x: Tensor | npt.ArrayLike) -> Tensor:
    """The calibration batch as a tensor.

    Raises:
        CalibrationError: dtype, size or values that cannot calibrate.
    """
    try:
        tensor = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"calibration_x is not an array of numbers: {error}.") from error
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    if tensor.dtype not in DTYPES:
        raise CalibrationError(
            f"calibration_x has dtype {str(tensor.dtype).removeprefix('torch.')}; "
            "use float32 features, int64 token ids or uint8 images."
        )
    if tensor.dim() < 2 or len(tensor) < EXAMPLES:
        raise CalibrationError(
            f"calibration_x has shape {list(tensor.shape)}; pass a batch of at least {EXAMPLES} "
            "examples, [examples, ...]. Sixteen or more of the base's own data are enough."
        )
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise CalibrationError("calibration_x holds NaN or infinity; remove those examples.")
    return tensor


def _check_outputs(program: Program, x: Tensor, config: CompileConfig) -> None:
    """The model must run on the calibration data, and its outputs must fit the task."""
    outputs = program.num_outputs
    if config.task == "classification" and outputs < 2:
        raise CompileError(
            f"The model has {outputs} output; classification needs at least 2, one logit for each "
            "class. Use two logits, or task='regression'."
        )
    if config.labels is not None and len(config.labels) != outputs:
        raise CompileError(
            f"labels has {len(config.labels)} names for {outputs} outputs; name each, in order."
        )
    try:
        with torch.no_grad():
            finite = [
                run(program, program.tensors, part)[0].isfinite().all()
                for part in torch.split(x, CHUNK)
            ]
    except (IndexError, RuntimeError) as error:
        raise CalibrationError(
            f"The model fails on calibration_x ({error}). Pass examples of the base's own data."
        ) from error
    if not all(finite):
        raise CalibrationError(
            "The model's outputs on calibration_x hold NaN or infinity. Pass examples of the data "
            "that it was trained on."
        )


def rule_of(config: CompileConfig) -> str:
    """The name in ``RULES``: ``dfa`` is another rule where credit is exact inside blocks."""
    blocks = config.block_size != 1 or config.attention == "local"
    return "dfa_blocks" if config.rule == "dfa" and blocks else config.rule


def build(model: nn.Module, calibration_x: Tensor | npt.ArrayLike, config: CompileConfig) -> Built:
    """Trace, place adapters, calibrate and freeze.

    Args:
        model: any module from a batch to logits [N, K] (or values, for regression).
        calibration_x: examples of the data that the base was trained on.
        config: what to compile.

    Raises:
        CompileError: see ``rootlet_server.compiler.errors``.
    """
    x = as_calibration(calibration_x)
    program = trace(model, x[:EXAMPLES])
    _check_outputs(program, x, config)
    chosen_for = architecture(program) if config.rule == "auto" and not config.names_dfa else None
    config = resolved(config, chosen_for)
    head = find_head(program)
    lora = config.adapter
    sites, left_out = (
        find_sites(
            program,
            head,
            x[:EXAMPLES],
            lora.target_modules,
            queries_and_keys=config.attention == "local",
        )
        if RULES[config.rule].adapts_base
        else ((), {})
    )
    example = x[:EXAMPLES].clone()
    if config.calibration == "noise":
        x = sparse_noise(x, config.seed)
    products = input_products(program, sites, x) if needs_products(lora) else {}
    ranks = choose_ranks(sites, lora, products)
    learner = Learner(
        program=program,
        sites=sites,
        head=head,
        task=config.task,
        scale=lora.scale(max(ranks.values(), default=1)),
        trains_a=lora.trains_a,
        feedback=config.feedback,
    )
    rule = rule_of(config)
    if rule == "dfa_blocks":
        size = 1 if config.block_size == "auto" else config.block_size
        size = len(sites) if size == "all" else size
        learner = replace(learner, points=find_points(program, sites, example, size))
    adapter = initial_adapter(program, sites, head, ranks, trains_a=lora.trains_a, seed=config.seed)
    without = {head.weight, *([head.bias] if head.bias else [])}
    a = frozen_a(sites, lora, ranks, products, seed=config.seed)
    float_frozen = freeze(program, "float32", without=without) | a
    if RULES[rule].local_heads:
        adapter |= initial_local_heads(learner, float_frozen, adapter, x)
    feedback = {}
    if RULES[rule].needs_feedback:
        feedback = make_feedback(learner, float_frozen, adapter, x, config)
    latent = cut(program, learner.sites, head) if config.latent else None
    if config.latent and latent is None:
        raise CompileError(
            "latent=True: no frozen layer lies before the first adapter, "
            f"{learner.sites[0].module if learner.sites else head.module}. Name later layers in "
            "LoraConfig.target_modules, or leave latent out."
        )
    step = Step(
        learner=learner,
        latent=latent,
        distils=config.distillation,
        rule=rule,
        optimizer=config.optimizer,
        hyperparameters=config.hyperparameters,
        max_gradient_norm=config.max_gradient_norm,
        adapter={name: value.shape for name, value in adapter.items()},
    )
    if (lora.a_dtype or ("float32" if config.base_dtype == "float32" else "int8")) == "int8":
        a = in_int8(a)
    ranges = {} if config.base_dtype == "float32" else conv_ranges(program, x)
    precision: tuple[LayerPrecision, ...] = ()
    dtypes: LayerDtype | dict[str, LayerDtype]
    if config.base_dtype == "mixed":
        precision = choose_precision(
            program, x, config.mixed, task=config.task, without=without, ranges=ranges
        )
        dtypes = {layer.tensor: layer.chosen for layer in precision}
    else:
        dtypes = config.base_dtype
    base = freeze(program, dtypes, without=without, backward=config.backward, ranges=ranges)
    built = Built(
        config=config,
        chosen_for=chosen_for,
        step=step,
        frozen=base | a | feedback,
        adapter=adapter,
        example=example,
        precision=precision,
        ranks=rank_table(sites, ranks, products, trains_a=lora.trains_a),
        left_out=left_out,
    )
    if rule == "dfa_blocks" and config.block_size == "auto":
        return choose_blocks(built, float_frozen, x, config)
    return built
