"""ONNX Runtime: the default engine.

The adapter and the optimiser's state live in two sets of tensors. A step reads the one and writes
the other through IO binding, and then the two change places by a single assignment: nothing is
copied, and a step that fails or is interrupted leaves the state before it.

Weights: each session is given views of the mapped ``base.bin``, and onnxruntime 1.32 copies them
once into its packed layout. Measured with 64 MiB of int8 weights, batch 8: 65 MiB of private memory
and 7 ms a run this way; 125 MiB and 7 ms with ``add_external_initializers_from_files_in_memory``;
unpacked 25 to 65 MiB but 11 ms (float32: 14 against 6 ms). The mapped pages are handed back after
loading, so that a steady process holds one copy for each session.

Activations: all sessions share one arena, which evaluating and predicting shrink again. A process
in which a transformer (4 blocks, d 384, T 64) trains at batch 32, evaluates and predicts peaks at
211 MiB and then holds 143, at the same speed; with an arena for each session it peaks at and holds
312 MiB, and without arenas it peaks at 757.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from rootlet_runtime.batches import AnyArray, Batch
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.errors import TrainingError
from rootlet_runtime.feedback_part import Overlay
from rootlet_runtime.graph_constants import with_constants
from rootlet_runtime.manifest import BASE_FILE, TensorSpec
from rootlet_runtime.onnx_tables import INT4
from rootlet_runtime.operators import ExternalTensor
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import zeros

# TensorProto.DataType to numpy, for the types that numpy has.
_DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}
# Session options under which quantised products are what the graph says, on every processor.
# Without VNNI, x86's kernel of uint8 by int8 saturates at 16 bits: the first turns weights to uint8
# there, and does nothing elsewhere. By default products with int4 weights round the activations.
AS_WRITTEN = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "0"}
_ERRORS_ONLY = 3
_EXTEND_AS_REQUESTED = 1

T = TypeVar("T")


def open_engine(bundle: Bundle, num_threads: int) -> "OnnxEngine":
    """The registry's entry point."""
    return OnnxEngine(bundle, num_threads)


class _Slot:
    """One complete state in the engine's memory, seen by numpy and by ONNX Runtime at once."""

    def __init__(self, adapter: tuple[TensorSpec, ...], optimizer: tuple[TensorSpec, ...]) -> None:
        self.adapter = zeros(adapter)
        self.optimizer = zeros(optimizer)
        self.steps = 0
        self.adapter_values = _share("adapter", self.adapter)
        self.values = self.adapter_values | _share("optimizer", self.optimizer)

    def fill(self, state: TrainState) -> None:
        for target, source in (
            (self.adapter, state.adapter),
            (self.optimizer, state.optimizer),
        ):
            for name, array in target.items():
                np.copyto(array, source[name])
        self.steps = state.steps


class _TrainBinding:
    """The train graph with all inputs and outputs bound, for one batch shape, both ways."""

    def __init__(self, session: Any, batch: Batch, slots: tuple[_Slot, _Slot]) -> None:
        self._session = session
        self.batch: dict[str, AnyArray] = {
            name: np.empty_like(value, order="C") for name, value in batch.arrays.items()
        }
        self.scalars = {name: np.zeros((), np.float32) for name in ("learning_rate", "step")}
        self.results = {name: np.zeros((), np.float32) for name in ("loss", "metric")}
        first, second = slots
        self._bindings = (self._bind(first, second), self._bind(second, first))

    def fits(self, batch: Batch) -> bool:
        """Whether a batch has the shape that is bound."""
        return self.batch["x"].shape == batch.x.shape

    def run(self, source: int) -> None:
        """One step from slot ``source`` to the other."""
        self._session.run_with_iobinding(self._bindings[source])

    def _bind(self, source: _Slot, target: _Slot) -> Any:
        binding = self._session.io_binding()
        wanted = {node.name for node in self._session.get_inputs()}
        for name, value in (_share("", self.batch | self.scalars) | source.values).items():
            if name in wanted:
                binding.bind_ortvalue_input(name, value)
        updated = {f"next/{name}": value for name, value in target.values.items()}
        for name, value in (_share("", self.results) | updated).items():
            binding.bind_ortvalue_output(name, value)
        return binding


class OnnxEngine:
    """Sessions are opened when first needed: who only predicts never loads the train graph."""

    def __init__(self, bundle: Bundle, num_threads: int) -> None:
        _prepare_process()
        self._bundle = bundle
        self._num_threads = num_threads
        specs = (bundle.manifest.adapter, bundle.manifest.optimizer_state)
        self._slots = (_Slot(*specs), _Slot(*specs))
        self._current = 0
        self._sessions: dict[str, Any] = {}
        self._binding: _TrainBinding | None = None
        self._feedback: Overlay = {}

    def load_feedback(self, overlay: Overlay) -> None:
        """Learns with other constants from the next step on; the adapter and its state stay."""
        self._feedback = overlay
        self._binding = None
        for role in overlay:
            self._sessions.pop(role, None)

    def load_state(self, state: TrainState) -> None:
        """Takes over a state; it is whole in the other slot before it becomes the current one."""
        other = 1 - self._current
        self._slots[other].fill(state)
        self._current = other

    def state(self) -> TrainState:
        """The current state, as copies."""
        slot = self._slots[self._current]
        return TrainState(
            adapter={name: array.copy() for name, array in slot.adapter.items()},
            optimizer={name: array.copy() for name, array in slot.optimizer.items()},
            steps=slot.steps,
        )

    def step(self, batch: Batch, learning_rate: float) -> tuple[float, float]:
        """One training step: loss and metric of the batch, before the update."""
        if self._binding is None or not self._binding.fits(batch):
            self._binding = _guard(
                "train", lambda: _TrainBinding(self._session("train"), batch, self._slots)
            )
        binding, current = self._binding, self._current
        steps = self._slots[current].steps + 1
        fed = batch.arrays
        for name, array in binding.batch.items():
            np.copyto(array, fed[name])
        binding.scalars["learning_rate"][...] = learning_rate
        binding.scalars["step"][...] = steps
        _guard("train", lambda: binding.run(current))
        self._slots[1 - current].steps = steps
        self._current = 1 - current
        return float(binding.results["loss"]), float(binding.results["metric"])

    def evaluate(self, batch: Batch) -> tuple[float, float, float]:
        """Sums over the batch of loss, metric and weight."""
        feeds = {"x": batch.x, "y": batch.y, "w": batch.w}
        found = self._run("evaluate", feeds)
        loss, metric, weight = (
            float(found[name]) for name in ("loss_sum", "metric_sum", "weight_sum")
        )
        return loss, metric, weight

    def gradients(self, batch: Batch, max_grad_norm: float) -> dict[str, AnyArray]:
        """Clipped sums of the gradients, and sums of loss, metric and weight, by output name."""
        feeds: dict[str, AnyArray] = {"x": batch.x, "y": batch.y, "w": batch.w}
        return self._run("grads", feeds | {"max_grad_norm": np.array(max_grad_norm, np.float32)})

    def encode(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """The latents [B, ...]."""
        latent: npt.NDArray[np.float32] = self._run("encode", {"x": x})["latent"]
        return latent

    def predict(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """The outputs [B, K]."""
        output: npt.NDArray[np.float32] = self._run("predict", {"x": x})["output"]
        return output

    def release(self) -> None:
        """Closes the sessions; the state stays."""
        self._binding = None
        self._sessions.clear()

    def _run(self, role: str, feeds: Mapping[str, AnyArray]) -> dict[str, Any]:
        session = self._session(role)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
                  for name, array in feeds.items()}  # fmt: skip
        if role != "encode":  # the one graph that no adapter changes
            values |= self._slots[self._current].adapter_values
        outputs = self._bundle.manifest.graphs[role].outputs
        options = onnxruntime.RunOptions()
        if role != "grads":  # it runs once a step, like train
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        found = _guard(role, lambda: session.run_with_ort_values(list(outputs), values, options))
        arrays = {name: value.numpy() for name, value in zip(outputs, found, strict=True)}
        for name, array in arrays.items():
            self._check_output(role, name, array, len(feeds["x"]))
        return arrays

    def _check_output(self, role: str, name: str, array: AnyArray, batch: int) -> None:
        """A graph's declared outputs do not bind it; numpy would broadcast what it gives."""
        expected: tuple[int | None, ...] = ()
        if name == "output":
            expected = (batch, self._bundle.manifest.num_outputs)
        elif name == "latent":
            expected = (batch, *self._bundle.manifest.learns_from.shape[1:])
        elif name.startswith("grads/"):
            expected = self._bundle.manifest.inputs[f"adapter/{name.removeprefix('grads/')}"].shape
        if array.shape != expected or array.dtype != np.float32:
            raise TrainingError(
                f"the {role} graph gives {name} as {array.dtype}{list(array.shape)}, and the "
                f"manifest says float32{list(expected)}; ask the publisher for another bundle"
            )

    def _session(self, role: str) -> Any:
        if role not in self._sessions:
            self._sessions[role] = _guard(role, lambda: self._open(role))
            self._bundle.release_pages()
        return self._sessions[role]

    def _open(self, role: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # halves the memory of a step, and costs no time
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        for key, value in AS_WRITTEN.items():
            options.add_session_config_entry(key, value)
        base, refreshed = self._bundle.entry(BASE_FILE), self._feedback.get(role, {})
        external = self._bundle.summaries[role].external
        tensors = [tensor for tensor in external if tensor.name not in refreshed]
        values = [_constant(t, base[t.offset : t.offset + t.length]) for t in tensors]
        options.add_external_initializers([tensor.name for tensor in tensors], values)
        entry = self._bundle.entry(self._bundle.manifest.graphs[role].file)
        graph = with_constants(entry, refreshed) if refreshed else bytes(entry)
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@cache
def _prepare_process() -> None:
    """No telemetry, and one arena for the sessions of this process."""
    onnxruntime.disable_telemetry_events()
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": _EXTEND_AS_REQUESTED})
    onnxruntime.create_and_register_allocator(memory, arena)


def _constant(tensor: ExternalTensor, stored: memoryview) -> Any:
    """ONNX Runtime's view of a stored tensor; of an int4 one it takes a byte for each element."""
    if tensor.data_type != INT4:
        view: AnyArray = np.frombuffer(stored, _DTYPES[tensor.data_type]).reshape(tensor.shape)
        return onnxruntime.OrtValue.ortvalue_from_numpy(view)
    room = np.empty(tensor.shape, np.uint8)
    room.reshape(-1)[: len(stored)] = np.frombuffer(stored, np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(room, INT4)


def _share(prefix: str, arrays: Mapping[str, AnyArray]) -> dict[str, Any]:
    """ONNX Runtime's view of numpy's memory; the view holds the array."""
    stem = f"{prefix}/" if prefix else ""
    return {
        f"{stem}{name}": onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for name, array in arrays.items()
    }


def _guard(role: str, call: Callable[[], T]) -> T:
    """Runs ``call``; the library's exceptions, which have no common base, become ours."""
    try:
        return call()
    except TrainingError:
        raise
    except Exception as error:
        raise TrainingError(f"the {role} graph failed in onnxruntime: {error}") from error
