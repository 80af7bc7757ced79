"""What to compile: the adapter, the rule, the precision and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rootlet_runtime.optimizers import resolve_hyperparameters
from rootlet_runtime.schedule import RateSchedule
from rootlet_server.compiler.choice_config import BlockBudget, MixedConfig
from rootlet_server.compiler.errors import CompileError
from rootlet_server.compiler.option_checks import check_sizes, one_of, positive, refuse_unread

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST_BATCH = 4096
EXPLAINED_VARIANCE = "explained_variance"
EXPLAINED_SHARE = 0.99
DFA_OPTIONS = (
    "feedback", "feedback_form", "feedback_rank", "feedback_positions", "block_size", "attention",
)  # fmt: skip

AdapterKind = Literal["calibrated", "lora", "lora_frozen_a"]
ADtype = Literal["int8", "float32"]
Task = Literal["classification", "regression"]
RuleName = Literal[
    "auto", "dfa", "backprop", "backprop_checkpointed", "head_only", "local_losses", "zeroth_order"
]
FeedbackName = Literal["calibrated", "calibrated_features", "random", "sign", "broadcast", "drtp"]
FeedbackForm = Literal["int8", "sign", "low_rank"]
Calibration = Literal["data", "noise"]
Positions = Literal["shared", "each"]
Attention = Literal["skip", "local"]
OptimizerName = Literal["sgd", "momentum", "nesterov", "adam", "adamw", "sign_momentum"]
BaseDtype = Literal["int8", "float32", "int4", "mixed"]
LayerDtype = Literal["int8", "float32", "int4"]
Backward = Literal["int8", "float32"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters: a site's output becomes ``W h + b + (alpha / rank) B A h``.

    Rule ``head_only`` has none and reads nothing of this.

    Attributes:
        kind: ``calibrated`` freezes A at the main directions of the site's inputs over the
            calibration data, so that only B learns; ``lora`` draws A at random (Hu et al. 2021)
            and trains it together with B; ``lora_frozen_a`` draws A at random and freezes it (Sun
            et al. 2024), for study.
        rank: rows of A, a site with fewer input features takes that many instead; or
            ``"explained_variance"``, by site (``rootlet_server.compiler.ranks``).
        explained_variance: the share of its inputs' variance at which a site has rank enough, in
            (0, 1]; read where the rank goes by it.
        adapter_bytes: the most that all sites together may train and send, without the head; read
            where the rank goes by explained variance. None is no bound.
        alpha: scale numerator, over the largest rank; None is twice that rank.
        target_modules: module-path suffixes that get an adapter; None is every Linear and every
            convolution without groups, except the head and the projections that only feed
            attention queries or keys.
        a_dtype: how a frozen A is stored and multiplied: ``int8`` with a scale for each of its
            rows, or ``float32``; None is float32 on a float32 base and int8 on others.
    """

    kind: AdapterKind = "calibrated"
    rank: int | Literal["explained_variance"] = 32
    explained_variance: float = EXPLAINED_SHARE
    adapter_bytes: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    a_dtype: ADtype | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, AdapterKind)
        self._check_rank()
        if self.alpha is not None:
            positive("alpha", self.alpha, "Leave it out for 2 * rank.")
        if self.a_dtype is not None:
            one_of("a_dtype", self.a_dtype, ADtype)
            if self.trains_a:
                raise CompileError(
                    f"a_dtype={self.a_dtype!r}: kind='lora' trains A, in float32. Leave it out."
                )
        if isinstance(self.target_modules, str):
            raise CompileError(
                f"target_modules={self.target_modules!r} must be a tuple of strings, not a string."
            )

    def _check_rank(self) -> None:
        if self.rank == EXPLAINED_VARIANCE:
            if not 0 < self.explained_variance <= 1:
                raise CompileError(
                    f"explained_variance={self.explained_variance!r} must be over 0 and at most 1; "
                    "0.99 is usual."
                )
            if self.adapter_bytes is not None and self.adapter_bytes < 1:
                raise CompileError(
                    f"adapter_bytes={self.adapter_bytes!r} must be positive. None is no bound."
                )
        elif not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise CompileError(
                f"rank={self.rank!r} must be a whole number of at least 1, or "
                "'explained_variance'; 32 is usual."
            )
        elif self.adapter_bytes is not None:
            raise CompileError(
                f"adapter_bytes={self.adapter_bytes!r} bounds rank='explained_variance' only; "
                f"leave it out for rank={self.rank}."
            )
        elif self.explained_variance != EXPLAINED_SHARE:
            raise CompileError(
                f"explained_variance={self.explained_variance!r} is not read: rank={self.rank} is "
                "fixed. Leave it out, or use rank='explained_variance'."
            )

    @property
    def rank_is_chosen(self) -> bool:
        """Whether the rank goes by explained variance."""
        return self.rank == EXPLAINED_VARIANCE

    @property
    def trains_a(self) -> bool:
        """Whether A learns with B."""
        return self.kind == "lora"

    def scale(self, largest_rank: int) -> float:
        """The factor before ``B A h``: alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / largest_rank


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Defaults that travel with the bundle; a device may bound what a server asks by them.

    ``decay`` (``constant``, ``linear`` or ``cosine``) and ``warmup`` (a share of the steps) are
    the schedule of the learning rate over one training.
    """

    learning_rate: float = 0.01
    batch_size: int = 16
    epochs: int = 1
    decay: str = "linear"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        positive("learning_rate", self.learning_rate, "0.01 is usual.")
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise CompileError(f"{name}={value!r} must be a whole number of at least 1.")
        try:
            RateSchedule(decay=self.decay, warmup=self.warmup)
        except ValueError as error:
            raise CompileError(f"training: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Asks for the ``grads`` graph, from which devices make private steps (``docs/privacy.md``).

    Attributes:
        target_epsilon: what all training of the bundle may spend, for one example added or removed;
            None states none. The compiler advises by it; devices and accountant hold to it.
        delta: of the same guarantee; well below one over the number of examples.
    """

    target_epsilon: float | None = None
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if self.target_epsilon is not None:
            positive("privacy.target_epsilon", self.target_epsilon, "None states none.")
        if not 0 < self.delta < 1:
            raise CompileError(f"privacy.delta={self.delta!r} must lie in 0..1; 1e-5 is usual.")


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """How a model becomes a bundle.

    Attributes:
        task: ``classification`` (softmax cross-entropy) or ``regression`` (mean squared error).
        rule: how credit is assigned: ``auto`` takes what the scoreboard found for the model's
            architecture (``defaults.py``), or ``dfa`` where one of its options is set; ``dfa``
            broadcasts the output error once, ``backprop`` is the control,
            ``backprop_checkpointed`` the same in less memory, ``head_only`` leaves the base without
            adapters: the floor; ``local_losses`` and ``zeroth_order`` are rivals.
        feedback: ``calibrated`` is the mean Jacobian of the outputs, ``calibrated_features`` that
            of the features, behind the live head; ``sign``, ``random``, ``broadcast`` and ``drtp``
            are for study (``rootlet_server.compiler.feedback``).
        feedback_form: how calibrated matrices are stored: ``int8``, their ``sign``, or two factors.
        feedback_rank: of the ``low_rank`` form.
        feedback_positions: ``shared`` gives the positions of a convolution or of tokens one
            calibrated matrix and a weight each; ``each`` gives each its own, in K P C bytes.
        block_size: K, the sites of a block under rule ``dfa``: feedback arrives at the top of a
            block and is passed down exactly inside it. 1 is a block for each site, ``"all"`` is
            backpropagation, ``"auto"`` chooses by measured alignment under ``block_budget``.
        block_budget: what ``"auto"`` may spend.
        attention: whether attention's queries and keys are left out, or adapted by ``local``
            credit: through the softmax, exactly, from the error at attention's output.
        calibration: ``noise`` calibrates feedback, A, ranks, the ranges of int8 convolutions, the
            choice of precision and local heads on sparse noise in the range of the calibration
            data, and on none of its examples.
        calibration_outputs: whose derivatives are taken in one backward pass while calibrating;
            more are faster, where there is memory for as many gradients.
        adapter: the low-rank adapters.
        base_dtype: ``int8`` quantises the frozen weights and the activations they multiply, row by
            row before linear layers and by measured ranges before convolutions; ``int4`` the
            weights of linear layers alone; ``mixed`` chooses by layer.
        mixed: how ``mixed`` chooses.
        backward: whether the products that pass an error down through linear layers of an int8
            base are in int8 too: those of backprop, and inside the blocks of rule ``dfa``.
        latent: cut the model at the end of its frozen prefix: devices compute the prefix once an
            example, train on its output and may keep it for replay.
        distillation: let the train graph take a teacher's outputs beside the labels.
        optimizer: part of the training graph; see ``rootlet_runtime.optimizers``.
        hyperparameters: the optimiser's, by name; what is left out has its default.
        max_gradient_norm: a batch's gradient, over all tensors, is scaled down to this norm; None
            leaves it.
        max_batch: the largest batch a device may feed.
        litert_batches: sizes of batch for which the bundle carries a LiteRT model too; smaller
            batches are padded. Empty for none; others need the extra ``litert-export``.
        privacy: None trains without differential privacy; see ``PrivacyConfig``.
        training: defaults for devices.
        labels: names of the classes, in the order of the outputs.
        licence: licence of the base and its data, shown to whoever inspects the bundle.
        data_origin: where the base's data came from.
        expires_in_days: days until devices refuse the bundle; None never.
        seed: seeds random feedback and random A.
    """

    task: Task = "classification"
    rule: RuleName = "auto"
    feedback: FeedbackName = "calibrated"
    feedback_form: FeedbackForm = "int8"
    feedback_rank: int = 8
    feedback_positions: Positions = "shared"
    calibration: Calibration = "data"
    calibration_outputs: int = 1
    block_size: int | Literal["all", "auto"] = 1
    block_budget: BlockBudget = field(default_factory=BlockBudget)
    attention: Attention = "skip"
    adapter: LoraConfig = field(default_factory=LoraConfig)
    base_dtype: BaseDtype = "int8"
    mixed: MixedConfig = field(default_factory=MixedConfig)
    backward: Backward = "float32"
    latent: bool = False
    distillation: bool = False
    optimizer: OptimizerName = "sgd"
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    max_gradient_norm: float | None = None
    max_batch: int = 64
    litert_batches: tuple[int, ...] = ()
    privacy: PrivacyConfig | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    labels: tuple[str, ...] | None = None
    licence: str = ""
    data_origin: str = ""
    expires_in_days: float | None = 365.0
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("task", self.task, Task)
        one_of("rule", self.rule, RuleName)
        one_of("feedback", self.feedback, FeedbackName)
        one_of("feedback_form", self.feedback_form, FeedbackForm)
        one_of("calibration", self.calibration, Calibration)
        one_of("feedback_positions", self.feedback_positions, Positions)
        one_of("attention", self.attention, Attention)
        if not isinstance(self.block_budget, BlockBudget):
            raise CompileError(
                f"block_budget={self.block_budget!r} must be a BlockBudget(time=..., memory=...)."
            )
        one_of("base_dtype", self.base_dtype, BaseDtype)
        one_of("backward", self.backward, Backward)
        one_of("optimizer", self.optimizer, OptimizerName)
        try:
            resolve_hyperparameters(self.optimizer, self.hyperparameters)
        except ValueError as error:
            raise CompileError(f"{error}.") from error
        if self.max_gradient_norm is not None:
            positive("max_gradient_norm", self.max_gradient_norm, "None clips nothing.")
        if not isinstance(self.max_batch, int) or not 2 <= self.max_batch <= LARGEST_BATCH:
            raise CompileError(
                f"max_batch={self.max_batch!r} must be a whole number from 2 to {LARGEST_BATCH}; "
                "64 is usual."
            )
        check_sizes(self)
        refuse_unread(self)
        if self.privacy is not None and self.rule == "zeroth_order":
            raise CompileError(
                "rule='zeroth_order' makes no private steps: its direction is no secret and is "
                "not released apart. Choose another rule, or privacy=None."
            )
        if self.expires_in_days is not None:
            positive("expires_in_days", self.expires_in_days, "None never expires.")

    @property
    def names_dfa(self) -> bool:
        """Whether an option is set that ``dfa`` alone reads."""
        return any(getattr(self, name) != getattr(CompileConfig, name) for name in DFA_OPTIONS)
