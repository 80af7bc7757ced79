"""The tests' small bundle with a LiteRT model beside ONNX, and how the engines must agree."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from rootlet_runtime import Bundle, LitertSpec, Manifest, write_bundle
from rootlet_runtime.batches import Batch
from rootlet_runtime.engines import open_engine
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import zeros

TESTS = Path(__file__).parents[1]
MODELS = TESTS / "vectors" / "litert"
SIZES = (8, 1, 5)  # a whole batch, one of its own size, a ragged one


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """``|found - expected| / |expected|`` in Frobenius norms."""
    norm = max(float(np.linalg.norm(expected)), 1e-6)
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected)) / norm


@dataclass(frozen=True)
class Disagreement:
    """The worst over ten steps, an evaluation and a prediction, relative."""

    loss: float
    adapter: float
    optimizer: float
    evaluate: float
    predict: float


def random_batch(manifest: Manifest, size: int, rng: np.random.Generator) -> Batch:
    """Examples that fit the manifest; one weight is 0 where there is more than one."""
    shape = (size, *(n for n in manifest.x.shape if n is not None))
    if manifest.x.dtype == "float32":
        x = rng.normal(size=shape).astype(np.float32)
    else:
        x = rng.integers(0, 30, shape).astype(manifest.x.dtype)
    w = np.linspace(1, 0 if size > 1 else 1, size, dtype=np.float32)
    return Batch(x, rng.integers(0, manifest.num_outputs, size), w, size)


def disagreement(bundle: Bundle, learning_rate: float) -> Disagreement:
    """Both engines from the bundle's adapter, each keeping its own state."""
    manifest = bundle.manifest
    engines = [open_engine(name, bundle, 1) for name in ("onnxruntime", "litert")]
    start = TrainState(adapter=bundle.initial_adapter(), optimizer=zeros(manifest.optimizer_state))
    for engine in engines:
        engine.load_state(start)
    rng = np.random.default_rng(0)
    loss = 0.0
    for step in range(10):
        batch = random_batch(manifest, SIZES[step % len(SIZES)], rng)
        (ours, metric), (theirs, their_metric) = (e.step(batch, learning_rate) for e in engines)
        loss = max(loss, abs(theirs - ours) / abs(ours))
        assert their_metric == pytest.approx(metric, rel=1e-5, abs=1e-6)
    onnx, litert = (engine.state() for engine in engines)
    assert onnx.steps == litert.steps == 10
    batch = random_batch(manifest, 20, rng)  # more than a signature holds: cut in pieces
    sums = [np.array(engine.evaluate(batch)) for engine in engines]
    outputs = [engine.predict(batch.x) for engine in engines]
    return Disagreement(
        loss=loss,
        adapter=max(relative(litert.adapter[k], v) for k, v in onnx.adapter.items()),
        optimizer=max([relative(litert.optimizer[k], v) for k, v in onnx.optimizer.items()] + [0]),
        evaluate=relative(sums[1], sums[0]),
        predict=relative(outputs[1], outputs[0]),
    )


@pytest.fixture(scope="session")
def measure() -> Callable[[Bundle, float], Disagreement]:
    """``measure(bundle, learning_rate)``: how far the engines are apart."""
    return disagreement


@pytest.fixture(scope="session")
def make_files() -> Callable[[str], tuple[Manifest, dict[str, bytes]]]:
    """``make_files(optimizer)``: the small bundle with its LiteRT model."""
    tiny = runpy.run_path(str(TESTS / "device_runtime" / "conftest.py"))["make_files"]

    def with_litert(optimizer: str) -> tuple[Manifest, dict[str, bytes]]:
        manifest, files = tiny(optimizer)
        files["model.tflite"] = (MODELS / f"{optimizer}.tflite").read_bytes()
        return replace(manifest, litert=LitertSpec(file="model.tflite", batches=(1, 8))), files

    return with_litert


@pytest.fixture(scope="session")
def bundle_paths(tmp_path_factory, make_files) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("litert")
    for optimizer in ("sgd", "adam"):
        write_bundle(folder / f"{optimizer}.rootlet", *make_files(optimizer), None)
    return {name: folder / f"{name}.rootlet" for name in ("sgd", "adam")}


@pytest.fixture(params=["sgd", "adam"])
def bundle(request, bundle_paths) -> Bundle:
    return Bundle.load(bundle_paths[request.param], trusted_keys=[], allow_unsigned=True)
