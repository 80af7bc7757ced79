"""What the compiler may choose by itself, and within which bounds: precision and blocks."""

from __future__ import annotations

from dataclasses import dataclass

from rootlet_server.compiler.option_checks import positive


@dataclass(frozen=True, kw_only=True)
class MixedConfig:
    """How ``base_dtype="mixed"`` chooses a precision for every layer.

    Attributes:
        tolerance: a layer takes the smallest dtype that changes the outputs by no more than this:
            nats of KL divergence for classification, share of the variance for regression.
        budget_bytes: of the frozen base, adapters and feedback apart; layers are made smaller, the
            least damage per byte first, until it fits. None sets no bound.
    """

    tolerance: float = 1e-3
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        positive("mixed.tolerance", self.tolerance, "1e-3 is usual.")
        if self.budget_bytes is not None:
            positive("mixed.budget_bytes", self.budget_bytes, "None sets no bound.")


@dataclass(frozen=True, kw_only=True)
class BlockBudget:
    """What ``block_size="auto"`` may spend, as shares of what backprop of the same step takes.

    Attributes:
        time: of its multiply-accumulates, counted by operator.
        memory: of the bytes that it stores in the forward pass for the way back, counted on the
            graph with a float32 base; 1 is never more than backprop.
    """

    time: float = 0.8
    memory: float = 1.0

    def __post_init__(self) -> None:
        positive("block_budget.time", self.time, "0.8 is usual, 1 is backprop's.")
        positive("block_budget.memory", self.memory, "1 is backprop's.")
