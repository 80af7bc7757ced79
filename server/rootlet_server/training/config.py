"""How a base is trained: what is learned apart from how fast the machine does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

from rootlet_server.training.bounds import one_of, whole, within
from rootlet_server.training.errors import FullTrainingConfigError

Task = Literal["classification", "regression"]
OptimizerName = Literal[
    "sgd", "adam", "adamw", "lamb", "lars", "lion", "sophia", "shampoo", "soap", "lbfgs", "kfac",
    "hessian_free",
]  # fmt: skip
Decay = Literal["constant", "linear", "cosine", "one_cycle"]
Averaging = Literal["off", "ema", "swa"]
Strategy = Literal["single", "ddp", "fsdp2"]
Precision = Literal["float32", "bf16", "fp16"]
Compression = Literal["off", "sign", "bf16"]
Quantiser = Literal["off", "qat", "lsq"]
Device = Literal["auto", "cpu", "cuda"]

WHOLE_BATCH = ("lbfgs", "hessian_free")  # the loss must be the same function in every evaluation
SECOND_ORDER = ("sophia", "kfac", *WHOLE_BATCH)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimiser, and its own numbers.

    Attributes:
        name: see ``rootlet_server.training.optimizers``.
        learning_rate: the peak of the schedule.
        weight_decay: decoupled where the optimiser decouples it; never on vectors (biases, norms).
        hyperparameters: the optimiser's own, by the names of its constructor.
        sam_rho: sharpness-aware minimisation (Foret et al. 2021) around it, at this radius; 0 off.
        max_grad_norm: the batch's gradient is scaled down to this norm; None leaves it.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    hyperparameters: Mapping[str, float | int | bool] = field(default_factory=dict)
    sam_rho: float = 0.0
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, OptimizerName)
        within("optimizer.learning_rate", self.learning_rate, 1e-12, 1e3, "1e-3 suits adamw.")
        within("optimizer.weight_decay", self.weight_decay, 0, 10)
        within("optimizer.sam_rho", self.sam_rho, 0, 10, "0.05 is usual; 0 is off.")
        if self.max_grad_norm is not None:
            within("optimizer.max_grad_norm", self.max_grad_norm, 1e-9, 1e9, "1 is usual.")
        if self.sam_rho and self.name in SECOND_ORDER:
            raise FullTrainingConfigError(
                f"optimizer.sam_rho={self.sam_rho} goes around first-order optimisers; "
                f"{self.name!r} evaluates the loss by itself. Leave sam_rho out."
            )
        if self.weight_decay and self.name in WHOLE_BATCH:
            raise FullTrainingConfigError(
                f"optimizer.weight_decay={self.weight_decay}: {self.name!r} has none. Leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over all steps: ``warmup`` is a share of them, then ``decay``.

    ``one_cycle`` (Smith 2018) rises over ``warmup`` (0.3 is usual) and falls by half a cosine, as
    ``cosine`` does; ``final`` is the last rate as a share of the peak.
    """

    decay: Decay = "cosine"
    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        one_of("schedule.decay", self.decay, Decay)
        within("schedule.warmup", self.warmup, 0, 0.9, "0.05 is usual.")
        within("schedule.final", self.final, 0, 1)
        if self.decay == "one_cycle" and not self.warmup:
            raise FullTrainingConfigError("schedule.warmup=0: one_cycle rises first; 0.3 is usual.")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Speed and memory; none of it changes what is learned beyond rounding.

    Attributes:
        device: ``auto`` takes CUDA where there is one.
        strategy: one process, DDP, or FSDP2 (parameters, gradients and state sharded).
        processes: of this machine; ``rootlet train`` starts them.
        cpu_offload: FSDP2 keeps shards in the host's memory between uses.
        precision: of products; weights stay in float32. fp16 scales the loss.
        accumulation: a batch is computed in this many parts.
        checkpointing: recompute the blocks' activations in the backward pass.
        blocks: paths of the repeated blocks, for checkpointing and FSDP2; empty finds them.
        compile: a backend of ``torch.compile`` such as ``inductor``; None runs eagerly.
        compression: of gradients between DDP's processes; ``sign`` is one bit with error feedback.
        workers: processes that load examples of a Dataset.
        check_every: steps between looks at the loss for NaN; each look waits for CUDA.
    """

    device: Device = "auto"
    strategy: Strategy = "single"
    processes: int = 1
    cpu_offload: bool = False
    precision: Precision = "float32"
    accumulation: int = 1
    checkpointing: bool = False
    blocks: tuple[str, ...] = ()
    compile: str | None = None
    compression: Compression = "off"
    workers: int = 0
    check_every: int = 1

    def __post_init__(self) -> None:
        for name, choices in (
            ("device", Device), ("strategy", Strategy), ("precision", Precision),
            ("compression", Compression),
        ):  # fmt: skip
            one_of(f"engine.{name}", getattr(self, name), choices)
        whole("engine.processes", self.processes)
        whole("engine.accumulation", self.accumulation)
        whole("engine.check_every", self.check_every)
        whole("engine.workers", self.workers, 0)
        for broken, message in (
            (self.strategy == "single" and self.processes > 1,
             f"engine.processes={self.processes}: strategy='single' is one process. "
             "Use strategy='ddp' or 'fsdp2'."),
            (self.cpu_offload and self.strategy != "fsdp2",
             f"engine.cpu_offload: only strategy='fsdp2' offloads, not {self.strategy!r}."),
            (self.compression != "off" and self.strategy != "ddp",
             f"engine.compression={self.compression!r}: only strategy='ddp' compresses what it "
             f"sends, not {self.strategy!r}."),
            (self.precision == "fp16" and self.strategy == "fsdp2",
             "engine.precision='fp16' with strategy='fsdp2': sharded gradients are not scaled. "
             "Use 'bf16'."),
            (self.precision == "fp16" and self.device == "cpu",
             "engine.precision='fp16' needs CUDA; on a CPU use 'bf16'."),
            (self.strategy != "single" and self.processes < 2,
             f"engine.strategy={self.strategy!r} with processes={self.processes}: use 'single', or "
             "2 processes or more."),
        ):  # fmt: skip
            if broken:
                raise FullTrainingConfigError(message)


@dataclass(frozen=True, kw_only=True)
class CentralPrivacy:
    """Differentially private training of the base (``docs/training_full.md``).

    Attributes:
        max_grad_norm: bound on an example's gradient.
        delta: of the guarantee; well below one over the number of examples.
        target_epsilon: the noise is chosen to spend this much; or
        noise_multiplier: the noise, in units of ``max_grad_norm``. Exactly one of the two.
        ledger: folder in which runs on the same examples are charged (``rootlet_server.privacy``).
        budget_epsilon: the most that all runs of the ledger may spend together.
    """

    max_grad_norm: float = 1.0
    delta: float = 1e-5
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    ledger: str | None = None
    budget_epsilon: float | None = None

    def __post_init__(self) -> None:
        within("privacy.max_grad_norm", self.max_grad_norm, 1e-9, 1e9, "1 is usual.")
        within("privacy.delta", self.delta, 1e-300, 0.5, "1e-5 is usual.")
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise FullTrainingConfigError(
                f"privacy.target_epsilon={self.target_epsilon!r} and privacy.noise_multiplier="
                f"{self.noise_multiplier!r}: give exactly one of the two."
            )
        if self.budget_epsilon is not None and self.ledger is None:
            raise FullTrainingConfigError(
                f"privacy.budget_epsilon={self.budget_epsilon!r} is over all runs of a ledger, and "
                "there is none: give privacy.ledger a folder."
            )
        for name in ("target_epsilon", "noise_multiplier", "budget_epsilon"):
            if (value := getattr(self, name)) is not None:
                within(f"privacy.{name}", value, 1e-3, 1e4)


@dataclass(frozen=True, kw_only=True)
class FullTrainingConfig:
    """All of it.

    Attributes:
        task: cross-entropy over classes, or mean squared error.
        epochs: passes over the examples.
        batch_size: examples of one step, over all processes and parts together.
        optimizer, schedule, engine: see there.
        averaging: the weights that come out: the last, their exponential average, or their mean
            over the last quarter of the steps (Izmailov et al. 2018).
        ema_decay: of ``ema``.
        quantiser: train with int8 weights and activations in the forward pass, so that a bundle's
            int8 base loses less: rounding by range (``qat``) or with learned steps (``lsq``).
        weight_bits: of ``quantiser``: 8, or 4 for the linear layers of an int4 base.
        privacy: None trains without.
        seed: seeds the order, dropout and noise that is not private.
        checkpoint_every, keep: steps between checkpoints (0: only after the last step), and how
            many are kept.
        evaluate_every, log_every: steps between evaluations (0: once an epoch) and between events.
        target_metric: training ends as soon as the held-out metric reaches it; None never.
        deterministic: ask torch for deterministic kernels, slower on CUDA.
    """

    task: Task = "classification"
    epochs: int = 10
    batch_size: int = 64
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    averaging: Averaging = "off"
    ema_decay: float = 0.999
    quantiser: Quantiser = "off"
    weight_bits: int = 8
    privacy: CentralPrivacy | None = None
    seed: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    evaluate_every: int = 0
    log_every: int = 10
    target_metric: float | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        one_of("task", self.task, Task)
        one_of("averaging", self.averaging, Averaging)
        one_of("quantiser", self.quantiser, Quantiser)
        if self.weight_bits not in (4, 8):
            raise FullTrainingConfigError(f"weight_bits={self.weight_bits!r} must be 8 or 4.")
        for name, least in (
            ("epochs", 1), ("batch_size", 1), ("keep", 1), ("log_every", 1), ("seed", 0),
            ("checkpoint_every", 0), ("evaluate_every", 0),
        ):  # fmt: skip
            whole(name, getattr(self, name), least)
        within("ema_decay", self.ema_decay, 0, 1 - 1e-9, "0.999 is usual.")
        parts = self.engine.processes * self.engine.accumulation
        if self.batch_size % parts:
            raise FullTrainingConfigError(
                f"batch_size={self.batch_size} does not divide into processes x accumulation = "
                f"{self.engine.processes} x {self.engine.accumulation} equal parts. "
                f"Use {max(self.batch_size // parts, 1) * parts}."
            )
        self._check_together()

    def _check_together(self) -> None:
        name, engine = self.optimizer.name, self.engine
        plain = {"max_grad_norm": None, "sam_rho": 0.0}
        for broken, message in (
            (name in SECOND_ORDER and engine.strategy == "fsdp2",
             f"optimizer.name={name!r} needs whole layers; strategy='fsdp2' shards them. "
             "Use 'ddp' or 'single'."),
            (name in SECOND_ORDER and engine.precision == "fp16",
             f"optimizer.name={name!r} with precision='fp16': curvature is unscaled. Use 'bf16'."),
            (name in ("kfac", *WHOLE_BATCH) and engine.strategy != "single",
             f"optimizer.name={name!r} runs with strategy='single' only."),
            (name in ("kfac", *WHOLE_BATCH) and engine.accumulation > 1,
             f"optimizer.name={name!r} sees a batch as a whole. Use accumulation=1."),
            (self.optimizer.sam_rho > 0 and engine.strategy == "fsdp2",
             "optimizer.sam_rho with strategy='fsdp2': the ascent step needs whole tensors. "
             "Use 'ddp'."),
            (self.optimizer.sam_rho > 0 and engine.precision == "fp16",
             "optimizer.sam_rho with precision='fp16': a skipped step would end the ascent at the "
             "wrong weights. Use 'bf16'."),
            (self.quantiser != "off" and engine.strategy == "fsdp2",
             f"quantiser={self.quantiser!r} with strategy='fsdp2': ranges need whole layers. "
             "Use 'ddp'."),
            (self.quantiser != "off" and name == "kfac",
             f"quantiser={self.quantiser!r} with optimizer.name='kfac': a rounded weight is no "
             "leaf that K-FAC could step. Use another optimiser."),
            (name in ("shampoo", "soap", "lars", "lamb") and engine.strategy == "fsdp2",
             f"optimizer.name={name!r} reads whole layers; strategy='fsdp2' shards them. "
             "Use 'ddp', or an elementwise optimiser (sgd, adam, adamw, lion)."),
            (self.privacy is not None and (engine != EngineConfig(device=engine.device)
                                           or self.quantiser != "off"),
             "privacy: private training runs with strategy='single', precision='float32' and "
             "nothing else of [engine], and without a quantiser."),
            (self.privacy is not None and (name in SECOND_ORDER or any(
                getattr(self.optimizer, key) != value for key, value in plain.items())),
             f"privacy with optimizer.name={name!r}, max_grad_norm={self.optimizer.max_grad_norm}, "
             f"sam_rho={self.optimizer.sam_rho}: use a first-order optimiser; the bound is "
             "privacy.max_grad_norm."),
        ):  # fmt: skip
            if broken:
                raise FullTrainingConfigError(message)

    def describe(self) -> dict[str, object]:
        """What decides the trajectory, for telling one run's checkpoint from another's."""
        skipped = ("engine", "checkpoint_every", "keep", "log_every", "evaluate_every")
        names = [f.name for f in fields(self) if f.name not in skipped]
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return dict(value) if isinstance(value, Mapping) else value
