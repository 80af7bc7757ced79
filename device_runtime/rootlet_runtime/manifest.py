"""The bundle's manifest: what a device is told about the graphs it runs.

The manifest is data, validated field by field; a field that this version does not know is refused,
because it might change the meaning of the others. Free-form additions belong under ``extensions``,
which is ignored.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rootlet_runtime import strict_json
from rootlet_runtime.errors import ManifestError
from rootlet_runtime.optimizers import resolve_hyperparameters
from rootlet_runtime.schedule import RateSchedule

SCHEMA = 1
ROLES = ("train", "evaluate", "predict")
OPTIONAL_ROLES = ("grads", "encode")
BASE_FILE = "base.bin"
ADAPTER_FILE = "adapter.safetensors"
LITERT_FILE = "model.tflite"
CONTENT_FILES = (*(f"{role}.onnx" for role in ROLES), ADAPTER_FILE, BASE_FILE)
SUMS = ("loss_sum", "metric_sum", "weight_sum")
INPUT_DTYPES = ("float32", "int64", "uint8")

_TEACHER = {"teacher", "teacher_weight"}
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}")
_HEX_32 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of one tensor; ``None`` is the batch dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        _match(_TENSOR_NAME, "tensor name", self.name)
        if len(self.shape) > 8:
            raise ManifestError(f"{self.name}: {len(self.shape)} dimensions; at most 8")
        for size in self.shape:
            if size is not None:
                _bounded(f"{self.name}: a dimension", size, 1, 2**31 - 1)

    @property
    def elements(self) -> int:
        """Number of elements of one example (or of the whole tensor where no dimension is open)."""
        return math.prod(size for size in self.shape if size is not None)


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One graph: its file and the names it takes and gives, in order."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LitertSpec:
    """The same graphs as one LiteRT model: a signature for each role and size of batch."""

    file: str
    batches: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.file != LITERT_FILE:
            raise ManifestError(f"litert.file is {self.file!r}, not {LITERT_FILE!r}")
        if not 1 <= len(self.batches) <= 8 or list(self.batches) != sorted(set(self.batches)):
            raise ManifestError(
                f"litert.batches {list(self.batches)}: must be one to eight sizes, growing"
            )


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """SHA-256 (hex) and size in bytes of one file of the bundle."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        _match(_HEX_32, "sha256", self.sha256)
        _bounded("file size", self.size, 0, 2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class TrainingDefaults:
    """The publisher's suggestion for ``Trainer.fit``; nothing enforces it.

    ``decay`` and ``warmup`` are a ``rootlet_runtime.schedule.RateSchedule``.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    decay: str = "linear"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        _positive("training.learning_rate", self.learning_rate)
        _bounded("training.batch_size", self.batch_size, 1, 65536)
        _bounded("training.epochs", self.epochs, 1, 100_000)
        try:
            self.schedule  # noqa: B018 - made to be checked
        except ValueError as error:
            raise ManifestError(f"training: {error}") from error

    @property
    def schedule(self) -> RateSchedule:
        """How the learning rate rises and falls over a ``fit``."""
        return RateSchedule(decay=self.decay, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a device knows of a bundle before it runs it; see ``docs/bundle.md``."""

    schema: int = SCHEMA
    name: str
    version: int
    created_at: str
    expires_at: str | None = None
    publisher: str | None = None
    task: str
    rule: str
    feedback: str | None = None
    adapter_kind: str
    rank: int
    alpha: float
    base_dtype: str
    optimizer: str
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    max_batch: int
    x: TensorSpec
    y: TensorSpec
    latent: TensorSpec | None = None
    num_outputs: int
    labels: tuple[str, ...] | None = None
    adapter: tuple[TensorSpec, ...]
    optimizer_state: tuple[TensorSpec, ...] = ()
    graphs: Mapping[str, GraphSpec]
    litert: LitertSpec | None = None
    training: TrainingDefaults
    cost: Mapping[str, int] = field(default_factory=dict)
    licence: str
    data_origin: str
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    extensions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_schema(self.schema)
        self._check_identity()
        self._check_training()
        self._check_tensors()
        self._check_graphs()
        if self.files and set(self.files) != set(self.content_files):
            raise ManifestError(
                f"files: {sorted(self.files)}; this bundle of schema {SCHEMA} declares exactly "
                f"{sorted(self.content_files)}"
            )

    def to_json(self) -> bytes:
        """The canonical bytes: sorted keys, UTF-8. These are what is signed."""
        return strict_json.dumps(self)

    @classmethod
    def from_json(cls, raw: bytes) -> "Manifest":
        """Decodes and validates.

        Raises:
            ManifestError: not JSON, a duplicate key, an unknown or missing field, an impossible
                value.
        """
        try:
            parsed = strict_json.parse(raw)
            if isinstance(parsed, dict):
                _check_schema(parsed.get("schema"))
            manifest = strict_json.decode(parsed, cls)
        except strict_json.StrictJsonError as error:
            raise ManifestError(f"manifest.json: {error}") from error
        if not manifest.files:
            raise ManifestError("files: empty; every file of the bundle must be declared")
        return manifest

    @property
    def content_files(self) -> tuple[str, ...]:
        """Every file of the bundle but the manifest and its signature, in the archive's order."""
        graphs = (f"{role}.onnx" for role in OPTIONAL_ROLES if role in self.graphs)
        return (*CONTENT_FILES, *graphs, *(() if self.litert is None else (self.litert.file,)))

    @property
    def expires(self) -> datetime | None:
        """The expiry as a time, if there is one."""
        return None if self.expires_at is None else _time("expires_at", self.expires_at)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What each input of the graphs is, by its name there."""
        named = {f"adapter/{spec.name}": spec for spec in self.adapter}
        named |= {f"optimizer/{spec.name}": spec for spec in self.optimizer_state}
        weights = TensorSpec(name="w", dtype="float32", shape=(None,))
        scalars = {
            name: TensorSpec(name=name, dtype="float32", shape=())
            for name in ("learning_rate", "max_grad_norm", "step")
        }
        teacher = {
            "teacher": TensorSpec(name="teacher", dtype="float32", shape=(None, self.num_outputs)),
            "teacher_weight": TensorSpec(name="teacher_weight", dtype="float32", shape=(None,)),
        }
        return {"x": self.x, "y": self.y, "w": weights} | teacher | scalars | named

    def inputs_of(self, role: str) -> Mapping[str, TensorSpec]:
        """The same for one graph: where there is a latent, all that train and measure take it."""
        whole = role in ("predict", "encode")
        return {**self.inputs, "x": self.x if whole else self.learns_from}

    @property
    def learns_from(self) -> TensorSpec:
        """What the train graph takes as ``x``: the latent, or the input itself."""
        return self.x if self.latent is None else self.latent

    @property
    def distils(self) -> bool:
        """Whether the train graph takes a teacher's outputs beside the labels."""
        return "teacher" in self.graphs["train"].inputs

    def _check_identity(self) -> None:
        _match(_SLUG, "name", self.name)
        _bounded("version", self.version, 1, 2**63 - 1)
        created = _time("created_at", self.created_at)
        if self.expires is not None and self.expires <= created:
            raise ManifestError(f"expires_at {self.expires_at} is not after {self.created_at}")
        if self.publisher is not None:
            _match(_HEX_32, "publisher (hex of a raw Ed25519 public key)", self.publisher)
        for name in ("licence", "data_origin"):
            if len(getattr(self, name)) > 4096:
                raise ManifestError(f"{name}: longer than 4096 characters")

    def _check_training(self) -> None:
        _one_of("task", self.task, ("classification", "regression"))
        _one_of("base_dtype", self.base_dtype, ("int8", "float32", "int4", "mixed"))
        try:
            resolved = resolve_hyperparameters(self.optimizer, self.hyperparameters)
        except ValueError as error:
            raise ManifestError(str(error)) from error
        if resolved != self.hyperparameters:
            missing = sorted(resolved.keys() - self.hyperparameters.keys())
            raise ManifestError(f"hyperparameters: missing {missing} of {self.optimizer}")
        for name in ("rule", "feedback", "adapter_kind"):
            if getattr(self, name) is not None:
                _match(_SLUG, name, getattr(self, name))
        _bounded("rank", self.rank, 0, 65536)
        _positive("alpha", self.alpha)
        _bounded("max_batch", self.max_batch, 1, 65536)
        _bounded("num_outputs", self.num_outputs, 1, 10_000_000)
        if self.training.batch_size > self.max_batch:
            raise ManifestError(
                f"training.batch_size {self.training.batch_size} exceeds max_batch {self.max_batch}"
            )
        for name, count in self.cost.items():
            _match(_SLUG, "cost", name)
            _bounded(f"cost.{name}", count, 0, 2**63 - 1)
        if self.labels is not None and len(self.labels) != self.num_outputs:
            raise ManifestError(f"labels: {len(self.labels)}, but num_outputs {self.num_outputs}")

    def _check_tensors(self) -> None:
        _one_of("x.dtype", self.x.dtype, INPUT_DTYPES)
        if not self.x.shape or self.x.shape[0] is not None or None in self.x.shape[1:]:
            raise ManifestError(f"x.shape {self.x.shape}: only the first dimension is open")
        latent = self.latent
        if latent is not None and (
            latent.dtype != "float32" or latent.shape[:1] != (None,) or None in latent.shape[1:]
        ):
            raise ManifestError(
                f"latent: must be float32, its first dimension alone open: {latent}"
            )
        classes = self.task == "classification"
        expected = ("int64", (None,)) if classes else ("float32", (None, self.num_outputs))
        if (self.y.dtype, self.y.shape) != expected:
            raise ManifestError(
                f"y is {self.y.dtype} {self.y.shape}; {self.task} needs {expected[0]} {expected[1]}"
            )
        if not self.adapter:
            raise ManifestError("adapter: empty; nothing would learn")
        for spec in (*self.adapter, *self.optimizer_state):
            if spec.dtype != "float32" or None in spec.shape:
                raise ManifestError(f"{spec.name}: must be float32 with a closed shape, is {spec}")
        names = _unique("adapter", (spec.name for spec in self.adapter))
        slots = _unique("optimizer_state", (spec.name for spec in self.optimizer_state))
        for slot in slots:
            if slot.partition("/")[2] not in names:
                raise ManifestError(f"optimizer_state {slot!r}: not <slot>/<adapter name>")

    def _check_graphs(self) -> None:
        if set(self.graphs) - set(OPTIONAL_ROLES) != set(ROLES):
            raise ManifestError(
                f"graphs: {sorted(self.graphs)}; must be exactly {sorted(ROLES)}, or also "
                f"some of {sorted(OPTIONAL_ROLES)}"
            )
        for role, graph in self.graphs.items():
            if graph.file != f"{role}.onnx":
                raise ManifestError(f"graphs.{role}.file is {graph.file!r}, not '{role}.onnx'")
            inputs, outputs = self._contract(role)
            found = set(_unique(f"graphs.{role}.inputs", graph.inputs))
            if role == "train" and found & _TEACHER:
                inputs = inputs | _TEACHER
            _same_names(f"graphs.{role}.inputs", found - {"step"}, inputs)
            if "step" in found and role != "train":
                raise ManifestError(f"graphs.{role}.inputs: 'step' belongs to the train graph only")
            _same_names(
                f"graphs.{role}.outputs",
                set(_unique(f"graphs.{role}.outputs", graph.outputs)),
                outputs,
            )

        if (self.latent is None) != ("encode" not in self.graphs):
            raise ManifestError("latent: declared together with an encode graph, or not at all")
        if self.litert is not None and (self.latent is not None or self.distils):
            raise ManifestError("litert: its model takes neither a latent nor a teacher")
        for batch in () if self.litert is None else self.litert.batches:
            _bounded("litert.batches", batch, 1, self.max_batch)

    def _contract(self, role: str) -> tuple[set[str], set[str]]:
        adapter = {f"adapter/{spec.name}" for spec in self.adapter}
        state = {f"optimizer/{spec.name}" for spec in self.optimizer_state}
        if role == "predict":
            return {"x"} | adapter, {"output"}
        if role == "encode":
            return {"x"}, {"latent"}
        if role == "evaluate":
            return {"x", "y", "w"} | adapter, set(SUMS)
        if role == "grads":
            gradients = {f"grads/{spec.name}" for spec in self.adapter}
            return {"x", "y", "w", "max_grad_norm"} | adapter, gradients | set(SUMS)
        updated = {f"next/{name}" for name in adapter | state}
        return {"x", "y", "w", "learning_rate"} | adapter | state, {"loss", "metric"} | updated


def format_time(when: datetime) -> str:
    """A time as the manifest writes it: RFC 3339, UTC, whole seconds."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_schema(schema: object) -> None:
    if schema != SCHEMA:
        raise ManifestError(
            f"schema {schema!r} is unknown; this runtime reads schema {SCHEMA}: "
            "update rootlet, or ask the publisher for a bundle of this schema"
        )


def _time(name: str, text: str) -> datetime:
    try:
        _match(_TIME, name, text)
        return datetime.fromisoformat(text)
    except (ValueError, ManifestError) as error:
        raise ManifestError(f"{name}: {text!r} is not like 2026-11-23T09:30:00Z") from error


def _match(pattern: re.Pattern[str], name: str, value: str) -> None:
    if not pattern.fullmatch(value):
        raise ManifestError(f"{name}: {value!r} does not match {pattern.pattern}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ManifestError(f"{name}: {value!r}; must be one of {', '.join(allowed)}")


def _bounded(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ManifestError(f"{name}: {value}; must lie in {low}..{high}")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ManifestError(f"{name}: {value}; must be positive and finite")


def _unique(name: str, values: Iterable[str]) -> tuple[str, ...]:
    items = tuple(values)
    if len(set(items)) != len(items):
        raise ManifestError(f"{name}: {max(items, key=items.count)!r} appears twice")
    return items


def _same_names(name: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        raise ManifestError(
            f"{name}: missing {sorted(expected - found)}, unexpected {sorted(found - expected)}; "
            "see the training graph in docs/architecture.md"
        )
