"""Options of ``CompileConfig`` that are out of bounds, or that nothing would read.

An option that the rule, the feedback or the base leaves unread is refused rather than ignored: who
sets it expects an effect. What is left at its default is never refused.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, get_args

from rootlet_server.compiler.errors import CompileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootlet_server.compiler.config import CompileConfig

DFA = ("dfa", "auto")  # auto is dfa where one of its options is set
BACKPROPS = ("backprop", "backprop_checkpointed")
MEASURED_FEEDBACK = ("calibrated", "calibrated_features")


def one_of(name: str, value: object, choices: object) -> None:
    """A value must be one of a Literal's.

    Raises:
        CompileError: it is not.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise CompileError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}.")


def positive(name: str, value: float, remedy: str) -> None:
    """A number must be finite and above zero.

    Raises:
        CompileError: it is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise CompileError(f"{name}={value!r} must be a positive number. {remedy}")


def refuse_unread(config: CompileConfig) -> None:
    """Every option that is not at its default must be read by something.

    Raises:
        CompileError: one is not; the message names it, why, and the remedy.
    """
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(config)
    }
    for name, reason, remedy in _unread(config):
        value = getattr(config, name)
        if value != defaults[name]:
            raise CompileError(f"{name}={value!r} is not read: {reason}. {remedy}")


def _unread(config: CompileConfig) -> Iterator[tuple[str, str, str]]:
    """(option, why nothing reads it, the remedy)."""
    yield from _unread_feedback(config)
    rule = f"rule={config.rule!r}"
    if config.rule not in DFA:
        yield "block_size", f"{rule} has no blocks", "Leave it out, or use rule='dfa'."
    if config.block_size != "auto":
        reason = f"block_size={config.block_size!r} asks for no choice"
        yield "block_budget", reason, "Leave it out, or use block_size='auto'."
    if config.rule == "head_only":
        yield "attention", f"{rule} adapts nothing in the base", "Leave it out, or use rule='dfa'."
    if config.base_dtype != "mixed":
        reason = f"base_dtype={config.base_dtype!r} is one precision for all layers"
        yield "mixed", reason, "Leave it out, or use base_dtype='mixed'."
    if config.base_dtype == "float32":
        reason = "a base in float32 has no int8 products"
        yield "backward", reason, "Leave it out, or use base_dtype='int8'."
    elif not _passes_credit_down(config):
        reason = f"{rule} passes no error down through the base"
        yield "backward", reason, "Leave it out, or use rule='backprop' or blocks."
    if not _calibrates(config):
        reason = f"nothing of {rule} with these adapters is calibrated on a float32 base"
        yield "calibration", reason, "Leave it out."


def _unread_feedback(config: CompileConfig) -> Iterator[tuple[str, str, str]]:
    names: tuple[str, ...] = ("feedback", "feedback_form", "feedback_rank", "feedback_positions")
    if config.rule not in DFA:
        reason = f"rule={config.rule!r} broadcasts no error"
        yield from ((name, reason, "Leave it out, or use rule='dfa'.") for name in names)
    elif config.block_size == "all":
        reason = "block_size='all' is one block, whose credit is exact"
        yield from ((name, reason, "Leave it out, or use smaller blocks.") for name in names)
    if config.feedback not in MEASURED_FEEDBACK:
        reason = f"feedback={config.feedback!r} is stored in int8 and shared by all positions"
        remedy = "Leave it out, or use feedback='calibrated'."
        yield "feedback_form", reason, remedy
        yield "feedback_positions", reason, remedy
    if config.feedback_form != "low_rank":
        reason = f"feedback_form={config.feedback_form!r} has no rank"
        yield "feedback_rank", reason, "Leave it out, or use feedback_form='low_rank'."


def _passes_credit_down(config: CompileConfig) -> bool:
    blocks = config.block_size != 1 or config.attention == "local"
    return config.rule in BACKPROPS or (config.rule in DFA and blocks)


def _calibrates(config: CompileConfig) -> bool:
    adapts = config.rule != "head_only"
    feedback = config.rule in DFA and config.feedback in (*MEASURED_FEEDBACK, "sign")
    adapters = adapts and (config.adapter.kind == "calibrated" or config.adapter.rank_is_chosen)
    return config.base_dtype != "float32" or adapters or feedback or config.rule == "local_losses"


def check_sizes(config: CompileConfig) -> None:
    """Blocks, ranks and batches must be whole numbers that fit each other.

    Raises:
        CompileError: one is not.
    """
    if config.block_size not in ("all", "auto") and not _counts(config.block_size):
        raise CompileError(
            f"block_size={config.block_size!r} must be a whole number of at least 1, 'all' or "
            "'auto'."
        )
    for name, usual in (("feedback_rank", 8), ("calibration_outputs", 1)):
        if not _counts(getattr(config, name)):
            raise CompileError(
                f"{name}={getattr(config, name)!r} must be a whole number of at least 1; {usual} "
                "is usual."
            )
    if config.training.batch_size > config.max_batch:
        raise CompileError(
            f"training.batch_size={config.training.batch_size} is larger than "
            f"max_batch={config.max_batch}. Raise max_batch or lower the batch size."
        )
    sizes = config.litert_batches
    if list(sizes) != sorted(set(sizes)) or not all(1 <= n <= config.max_batch for n in sizes):
        raise CompileError(
            f"litert_batches={sizes!r} must be growing whole numbers from 1 to max_batch="
            f"{config.max_batch}, such as (1, 16)."
        )


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
