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
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rootlet_runtime.batches import AnyArray, Batch, pad_rows
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.errors import DataError, TrainingError
from rootlet_runtime.manifest import LitertSpec
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import Arrays, zeros
from rootlet_runtime.tflite_check import signature_key

LIBRARIES = ("ai_edge_litert", "tflite_runtime")
_NARROWED = {np.dtype(np.int64): np.int32}  # LiteRT models take labels and tokens as int32

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
    return LitertEngine(bundle, spec, _interpreter_class(), num_threads)


def _interpreter_class() -> Any:
    missing: list[str] = []
    for library in LIBRARIES:
        try:
            return importlib.import_module(f"{library}.interpreter").Interpreter
        except ImportError as error:
            missing.append(str(error))
    raise ImportError("; ".join(missing))


class LitertEngine:
    """Holds the state in numpy and hands it to the signatures at each call."""

    def __init__(
        self, bundle: Bundle, spec: LitertSpec, interpreter_class: Any, num_threads: int
    ) -> None:
        self._bundle = bundle
        self._spec = spec
        self._class = interpreter_class
        self._num_threads = num_threads
        manifest = bundle.manifest
        self._state = TrainState(
            adapter=zeros(manifest.adapter), optimizer=zeros(manifest.optimizer_state)
        )
        self._interpreter: Any = None
        self._runners: dict[str, Any] = {}

    def load_state(self, state: TrainState) -> None:
        """Takes over copies of a state."""
        self._state = _copy(state)

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
                f"{largest} ({', '.join(map(str, self._spec.batches))}); lower it, or compile the "
                "bundle with a larger one in CompileConfig.litert_batches"
            )
        feeds = {"x": batch.x, "y": batch.y, "w": batch.w}
        found = self._run("train", feeds, learning_rate, state.steps + 1)
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

    def predict(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """The outputs [B, K]."""
        parts: list[npt.NDArray[np.float32]] = []
        for rows in self._pieces(len(x)):
            part = x[rows]
            parts.append(self._run("predict", {"x": part})["output"][: len(part)])
        return np.concatenate(parts)

    def release(self) -> None:
        """Closes the interpreter; the state stays."""
        self._runners.clear()
        self._interpreter = None

    def _pieces(self, examples: int) -> list[slice]:
        largest = self._spec.batches[-1]
        return [slice(start, start + largest) for start in range(0, examples, largest)]

    def _run(
        self,
        role: str,
        feeds: Mapping[str, AnyArray],
        learning_rate: float = 0.0,
        step: int = 0,
    ) -> dict[str, Any]:
        """One call of the signature that holds the batch."""
        examples = len(feeds["x"])
        batch = next(size for size in self._spec.batches if size >= examples)
        values: dict[str, AnyArray] = {
            "learning_rate": np.asarray(learning_rate, np.float32),
            "step": np.asarray(step, np.float32),
        }
        values |= {name: _padded(name, array, batch) for name, array in feeds.items()}
        values |= {f"adapter/{name}": array for name, array in self._state.adapter.items()}
        values |= {f"optimizer/{name}": array for name, array in self._state.optimizer.items()}
        wanted = {name: values[name] for name in self._bundle.manifest.graphs[role].inputs}
        return _guard(role, lambda: self._runner(signature_key(role, batch))(**wanted))

    def _runner(self, key: str) -> Callable[..., dict[str, Any]]:
        if self._interpreter is None:
            content = bytes(self._bundle.entry(self._spec.file))
            self._interpreter = self._class(model_content=content, num_threads=self._num_threads)
            self._bundle.release_pages()
        if key not in self._runners:
            self._runners[key] = self._interpreter.get_signature_runner(key)
        runner: Callable[..., dict[str, Any]] = self._runners[key]
        return runner


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
