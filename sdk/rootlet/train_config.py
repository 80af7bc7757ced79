"""How a device trains, and the most that a server may ask of it."""

import math
from dataclasses import dataclass, field

from rootlet.continual import ContinualConfig
from rootlet.errors import ConfigError
from rootlet.participant import DEFAULT_LIMITS, RoundLimits
from rootlet_runtime.engines import ENGINES
from rootlet_runtime.manifest import TrainingDefaults


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The device's own training settings; ``epochs`` and ``learning_rate`` also bound a server's.

    Attributes:
        epochs: Passes over the examples in one training. None: the bundle's default for local
            training, and `RoundLimits`' bound for a server.
        batch_size: Examples in one step. None: the bundle's default. A server's choice is bounded
            by the bundle's ``max_batch``.
        learning_rate: Step length. None: as for ``epochs``.
        num_threads: Processor threads that one training may use.
        engine: ``onnxruntime`` or ``litert``; see ``docs/engines.md``.
        continual: What is replayed and distilled, and what an adapter must pass to be used.

    Raises:
        ConfigError: A value is outside its bounds.
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    num_threads: int = 1
    engine: str = "onnxruntime"
    continual: ContinualConfig = field(default_factory=ContinualConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, below 1: give at least 1")
        if self.engine not in ENGINES:
            raise ConfigError(
                f"engine is {self.engine!r}: give one of {', '.join(sorted(ENGINES))}"
            )
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"learning_rate is {rate}: give a positive, finite number")

    def limits(self) -> RoundLimits:
        """The most that a server may ask for."""
        return RoundLimits(
            epochs=self.epochs or DEFAULT_LIMITS.epochs,
            learning_rate=self.learning_rate or DEFAULT_LIMITS.learning_rate,
        )

    def resolved(self, defaults: TrainingDefaults) -> TrainingDefaults:
        """These settings with the bundle's defaults in place of None."""
        return TrainingDefaults(
            epochs=self.epochs or defaults.epochs,
            batch_size=self.batch_size or defaults.batch_size,
            learning_rate=self.learning_rate or defaults.learning_rate,
            decay=defaults.decay,
            warmup=defaults.warmup,
        )
