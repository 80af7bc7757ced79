"""LiteRT, formerly TensorFlow Lite: ``ai-edge-litert``, or ``tflite-runtime`` where a board has it.

The model holds a signature for each role and for each size of batch in ``manifest.litert.batches``.
A batch takes the smallest that holds it; the rows that are missing repeat the first one with weight
0, which adds nothing to any sum. What only reads the adapter is cut into pieces where it is larger
than all of them; a training step cannot be cut, and is refused.

Adapter and optimiser live in numpy arrays and are replaced when a step has given all of its
outputs, so that a step that fails or is interrupted leaves the state before it. One interpreter
serves all signatures; it is opened when first used.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rootlet_runtime.batches import AnyArray, Batch, pad_rows
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.errors import DataError, FeedbackPartError, TrainingError
from rootlet_runtime.feedback_part import Overlay
from rootlet_runtime.manifest import GraphSpec, LitertSpec
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import Arrays, zeros
from rootlet_runtime.tflite_check import signature_key

LIBRARIES = ("ai_edge_litert", "tflite_runtime")
_NARROWED = {np.dtype(np.int64): np.int32}  # LiteRT models take labels and tokens as int32
_BATCH_INPUTS = ("x", "y", "w")

T = TypeVar("T")


def open_engine(bundle: Bundle, num_threads: int) -> "LitertEngine":
    """The registry's entry point.

    Raises:
        DataError: the bundle carries no LiteRT model.
        ImportError: neither library is installed.
    """
    spec = bundle.manifest.litert
    if spec is None:
        raise DataError(
            f"{bundle.manifest.name} version {bundle.manifest.version} carries no LiteRT model; "
            "use engine='onnxruntime', or compile it with CompileConfig(litert_batches=(16,))"
        )
    interpreter_class()
    return LitertEngine(bundle, spec, num_threads)


def interpreter_class() -> Any:
    """The library's ``Interpreter``.

    Raises:
        ImportError: neither library is installed.
    """
    missing: list[str] = []
    for library in LIBRARIES:
        try:
            return importlib.import_module(f"{library}.interpreter").Interpreter
        except ImportError as error:
            missing.append(str(error))
    raise ImportError("; ".join(missing))


class LitertModel:
    """An opened model: its graphs by role, for any batch up to the largest signature's."""

    def __init__(
        self,
        content: bytes,
        graphs: Mapping[str, GraphSpec],
        batches: Sequence[int],
        num_threads: int,
    ) -> None:
        self._graphs = graphs
        self._batches = batches
        self._interpreter = interpreter_class()(model_content=content, num_threads=num_threads)
        self._runners: dict[str, Any] = {}

    def run(self, role: str, values: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """The outputs of a graph, by name; ``output`` has as many rows as ``x``."""
        examples = len(values["x"])
        batch = next(size for size in self._batches if size >= examples)
        key = signature_key(role, batch)
        if key not in self._runners:
            self._runners[key] = self._interpreter.get_signature_runner(key)
        found: dict[str, AnyArray] = self._runners[key](
            **{
                name: _padded(name, values[name], batch) if name in _BATCH_INPUTS else values[name]
                for name in self._graphs[role].inputs
            }
        )
        if "output" in found:
            found["output"] = found["output"][:examples]
        return found


class LitertEngine:
    """Holds the state in numpy and hands it to the model at each call."""

    def __init__(self, bundle: Bundle, spec: LitertSpec, num_threads: int) -> None:
        self._bundle = bundle
        self._spec = spec
        self._num_threads = num_threads
        manifest = bundle.manifest
        self._state = TrainState(
            adapter=zeros(manifest.adapter), optimizer=zeros(manifest.optimizer_state)
        )
        self._model: LitertModel | None = None

    def load_state(self, state: TrainState) -> None:
        """Takes over copies of a state."""
        self._state = _copy(state)

    def load_feedback(self, overlay: Overlay) -> None:
        """Refuses: a LiteRT model's constants are of its own.

        Raises:
            FeedbackPartError: always.
        """
        raise FeedbackPartError(
            f"a refreshed feedback for the graphs {sorted(overlay)} is of ONNX; the LiteRT model "
            "keeps its own: use engine='onnxruntime'"
        )

    def state(self) -> TrainState:
        """The current state, as copies."""
        return _copy(self._state)

    def step(self, batch: Batch, learning_rate: float) -> tuple[float, float]:
        """One training step: loss and metric of the batch, before the update.

        Raises:
            DataError: the batch is larger than the largest that the model was made for.
        """
        state, largest = self._state, self._spec.batches[-1]
        if len(batch.x) > largest:
            raise DataError(
                f"batch_size {len(batch.x)}: this bundle's LiteRT model trains batches of at most "
                f"{largest}; lower it, or compile the bundle with a larger one in "
                "CompileConfig.litert_batches"
            )
        scalars = {"learning_rate": learning_rate, "step": state.steps + 1}
        feeds = {"x": batch.x, "y": batch.y, "w": batch.w}
        feeds |= {name: np.asarray(value, np.float32) for name, value in scalars.items()}
        found = self._run("train", feeds)
        self._state = TrainState(
            adapter={name: found[f"next/adapter/{name}"] for name in state.adapter},
            optimizer={name: found[f"next/optimizer/{name}"] for name in state.optimizer},
            steps=state.steps + 1,
        )
        return float(found["loss"]), float(found["metric"])

    def evaluate(self, batch: Batch) -> tuple[float, float, float]:
        """Sums over the batch of loss, metric and weight."""
        sums = np.zeros(3)
        for rows in self._pieces(len(batch.x)):
            feeds = {"x": batch.x[rows], "y": batch.y[rows], "w": batch.w[rows]}
            found = self._run("evaluate", feeds)
            sums += [float(found[name]) for name in ("loss_sum", "metric_sum", "weight_sum")]
        loss, metric, weight = (float(total) for total in sums)
        return loss, metric, weight

    def gradients(self, batch: Batch, max_grad_norm: float) -> dict[str, AnyArray]:
        """Clipped sums of the gradients, and sums of loss, metric and weight, by output name."""
        sums: dict[str, AnyArray] = {}
        for rows in self._pieces(len(batch.x)):
            feeds: dict[str, AnyArray] = {"x": batch.x[rows], "y": batch.y[rows]}
            feeds |= {"w": batch.w[rows], "max_grad_norm": np.array(max_grad_norm, np.float32)}
            found = self._run("grads", feeds)
            sums = {name: value + sums.get(name, 0) for name, value in found.items()}
        return sums

    def encode(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """No bundle has both a LiteRT model and latents; the manifest refuses it."""
        raise TrainingError("a LiteRT model has no encode graph; use the engine 'onnxruntime'")

    def predict(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """The outputs [B, K]."""
        parts = [self._run("predict", {"x": x[rows]})["output"] for rows in self._pieces(len(x))]
        return np.concatenate(parts)

    def release(self) -> None:
        """Closes the model; the state stays."""
        self._model = None

    def _pieces(self, examples: int) -> list[slice]:
        largest = self._spec.batches[-1]
        return [slice(start, start + largest) for start in range(0, examples, largest)]

    def _run(self, role: str, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        values = dict(feeds)
        values |= {f"adapter/{name}": array for name, array in self._state.adapter.items()}
        values |= {f"optimizer/{name}": array for name, array in self._state.optimizer.items()}
        return _guard(role, lambda: self._opened().run(role, values))

    def _opened(self) -> LitertModel:
        if self._model is None:
            content = bytes(self._bundle.entry(self._spec.file))
            graphs = self._bundle.manifest.graphs
            self._model = LitertModel(content, graphs, self._spec.batches, self._num_threads)
            self._bundle.release_pages()
        return self._model


def _padded(name: str, array: AnyArray, batch: int) -> AnyArray:
    """``array`` with ``batch`` rows, in the data type that the model takes; added weights are 0."""
    rows = pad_rows(np.arange(len(array)), batch)
    padded = np.ascontiguousarray(array[rows], _NARROWED.get(array.dtype, array.dtype))
    if name == "w":
        padded[len(array) :] = 0
    return padded


def _copy(state: TrainState) -> TrainState:
    def copied(arrays: Arrays) -> Arrays:
        return {name: array.copy() for name, array in arrays.items()}

    return TrainState(
        adapter=copied(state.adapter), optimizer=copied(state.optimizer), steps=state.steps
    )


def _guard(role: str, call: Callable[[], T]) -> T:
    """Runs ``call``; the library's exceptions, which have no common base, become ours."""
    try:
        return call()
    except Exception as error:
        raise TrainingError(f"the {role} signature failed in LiteRT: {error}") from error
