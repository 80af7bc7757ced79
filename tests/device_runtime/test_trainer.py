import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rootlet_runtime import Bundle, FitProgress, FitResult, Trainer, write_bundle
from rootlet_runtime.errors import (
    AdapterError,
    CheckpointError,
    DataError,
    MissingExtraError,
    NonFiniteLossError,
    TrainingError,
)

Examples = tuple[Any, Any]


def fit(trainer: Trainer, examples: Examples, **changes: Any) -> FitResult:
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "rng": np.random.default_rng(0)}
    return trainer.fit(*examples, **(settings | changes))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return list(first) == list(second) and all((first[n] == second[n]).all() for n in first)


def test_training_lowers_the_loss(trainer: Trainer, examples: Examples) -> None:
    before = trainer.evaluate(*examples)
    fit(trainer, examples, epochs=30)
    assert trainer.evaluate(*examples).loss < before.loss - 0.05


def test_progress_is_told_of_every_step(trainer: Trainer, examples: Examples) -> None:
    seen: list[FitProgress] = []
    fit(trainer, examples, progress=seen.append)
    assert [(p.epoch, p.step) for p in seen] == [(1 + i // 5, i + 1) for i in range(10)]
    assert {(p.epochs, p.steps) for p in seen} == {(2, 10)}
    assert all(0 <= p.metric <= 1 for p in seen)


def test_progress_stops_between_two_steps(bundle: Bundle, examples: Examples) -> None:
    whole, stopped = Trainer(bundle), Trainer(bundle)
    after_three: list[dict[str, Any]] = []

    def watch(report: FitProgress) -> None:
        if report.step == 3:
            after_three.append(whole.adapter)

    fit(whole, examples, progress=watch)
    result = fit(stopped, examples, progress=lambda report: report.step < 3)
    assert (result.stopped, result.steps, result.examples) == (True, 3, 24)
    assert same(stopped.adapter, after_three[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_whatever_is_raised_the_state_of_before_is_back(
    error: type[BaseException], bundle: Bundle, examples: Examples
) -> None:
    interrupted, untouched = Trainer(bundle), Trainer(bundle)

    def raise_at_three(report: FitProgress) -> None:
        if report.step == 3:
            raise error

    for trainer in (interrupted, untouched):
        fit(trainer, examples)
    with pytest.raises(error):
        fit(interrupted, examples, progress=raise_at_three)
    assert same(interrupted.adapter, untouched.adapter)
    for trainer in (interrupted, untouched):  # the optimiser's state is back too
        fit(trainer, examples)
    assert same(interrupted.adapter, untouched.adapter)


def test_a_step_that_fails_leaves_the_state_before_it(
    trainer: Trainer, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(trainer, examples)
    before = trainer.adapter
    engine: Any = trainer._engine._engine  # type: ignore[attr-defined]
    binding = engine._binding

    def fail(_: int) -> None:
        for slot in engine._slots[1 - engine._current].adapter.values():
            slot.fill(7)
        raise MemoryError("no room")

    monkeypatch.setattr(binding, "run", fail)
    with pytest.raises(TrainingError, match="train graph failed"):
        fit(trainer, examples)
    assert same(trainer.adapter, before)
    monkeypatch.undo()
    assert fit(trainer, examples).steps == 10


@pytest.mark.parametrize("epochs", [1, 5], ids=["in the last update", "in the loss"])
def test_a_diverging_fit_gives_the_state_back(
    epochs: int, trainer: Trainer, examples: Examples, tmp_path: Path
) -> None:
    """Biases near the end of float32 and a huge step: the first update overflows."""
    origin, label = np.zeros((1, 4), np.float32), np.array([0])
    bias = np.array([-3.4e38, -3.3e38, -3.3e38], np.float32)
    trainer.load_adapter(trainer.adapter | {"head.bias": bias})
    before, twin = trainer.adapter, Trainer(trainer.bundle)
    twin.load_adapter(before)
    with pytest.raises(NonFiniteLossError, match="Lower the learning rate"):
        fit(
            trainer,
            (origin, label),
            learning_rate=3.4e38,
            epochs=epochs,
            checkpoint_dir=tmp_path,
            guard=None,
        )
    assert same(trainer.adapter, before)
    assert not list(tmp_path.iterdir())
    for other in (trainer, twin):
        fit(other, (origin, label), epochs=1)
    assert same(trainer.adapter, twin.adapter)


def test_a_stop_after_the_diverging_step_leaves_no_checkpoint_that_nobody_can_restore(
    trainer: Trainer, tmp_path: Path
) -> None:
    """The loss of a step is taken before its update: it is still finite when the fit stops."""
    origin, label = np.zeros((1, 4), np.float32), np.array([0])
    bias = np.array([-3.4e38, -3.3e38, -3.3e38], np.float32)
    trainer.load_adapter(trainer.adapter | {"head.bias": bias})
    before = trainer.adapter
    for _ in range(2):
        with pytest.raises(NonFiniteLossError):
            fit(
                trainer,
                (origin, label),
                learning_rate=3.4e38,
                checkpoint_dir=tmp_path,
                guard=None,
                progress=lambda report: False,
            )
        assert same(trainer.adapter, before)


def test_an_overflowing_optimiser_gives_the_state_back(
    tiny: Callable[..., Any], key: Any, tmp_path: Path
) -> None:
    """Loss 1e32 and gradient 1e16 * 1e6 are finite, but Adam's v = 1e-3 * 1e44 is not.

    The adapter stays finite (a step divided by infinity is none), yet such a state was saved and
    could then not be restored.
    """
    manifest, files = tiny("adam", "regression")
    for role in ("train", "evaluate", "predict"):
        model = onnx.load_from_string(files[f"{role}.onnx"])
        for node in model.graph.node:
            node.op_type = node.op_type.replace("Tanh", "Identity")
        files[f"{role}.onnx"] = model.SerializeToString()
    write_bundle(tmp_path / "b", manifest, files, key)
    with Bundle.load(tmp_path / "b", trusted_keys=[key.public_key()]) as bundle:
        trainer = Trainer(bundle)
        trainer.load_adapter({n: np.zeros_like(a) for n, a in trainer.adapter.items()})
        x, y = np.full((1, 4), 1e6, np.float32), np.full((1, 3), 1e16, np.float32)
        with pytest.raises(NonFiniteLossError, match="left the optimiser"):
            fit(trainer, (x, y), epochs=1)
        trainer.save(tmp_path)
        trainer.restore(tmp_path)


@pytest.mark.parametrize(
    ("operator", "found"), [("ReduceMax", "float32[5, 1]"), ("Shape", "int64[2]")]
)
def test_an_output_of_another_shape_or_dtype_is_no_prediction(
    operator: str, found: str, tiny: Callable[..., Any], key: Any, tmp_path: Path
) -> None:
    """numpy would broadcast the one, and cast the other."""
    manifest, files = tiny("sgd")
    model = onnx.load_from_string(files["predict.onnx"])
    model.graph.node[-1].output[0] = "probabilities"
    axes = [onnx.numpy_helper.from_array(np.array([1]), "axes")] * (operator == "ReduceMax")
    model.graph.initializer.extend(axes)
    names = ["probabilities", *(tensor.name for tensor in axes)]
    model.graph.node.append(onnx.helper.make_node(operator, names, ["output"]))
    output = model.graph.output[0].type.tensor_type
    output.ClearField("shape")
    output.elem_type = onnx.TensorProto.FLOAT if axes else onnx.TensorProto.INT64
    files["predict.onnx"] = model.SerializeToString()
    write_bundle(tmp_path / "b", manifest, files, key)
    trainer = Trainer(Bundle.load(tmp_path / "b", trusted_keys=[key.public_key()]))
    with pytest.raises(TrainingError, match=re.escape(found)):
        trainer.predict(np.zeros((5, 4), np.float32))


def test_adapters_come_and_go_as_copies(trainer: Trainer) -> None:
    mine = trainer.adapter
    mine["head.bias"][:] = 5
    assert not (trainer.adapter["head.bias"] == 5).any()
    trainer.load_adapter(mine)
    mine["head.bias"][:] = 6
    assert (trainer.adapter["head.bias"] == 5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("head.bias"), "missing tensors"),
        (lambda a: a.update(other=np.zeros(3, np.float32)), "unknown tensors"),
        (lambda a: a.update({"head.bias": np.zeros((3, 1), np.float32)}), r"must be \(3,\)"),
        (lambda a: a.update({"head.bias": np.zeros(3)}), "must be float32"),
        (lambda a: a.update({"head.bias": np.full(3, np.nan, np.float32)}), "NaN"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(
    change: Callable[[dict[str, Any]], object], message: str, trainer: Trainer
) -> None:
    before = trainer.adapter
    adapter: dict[str, Any] = trainer.adapter
    change(adapter)
    with pytest.raises(AdapterError, match=message):
        trainer.load_adapter(adapter)
    assert same(trainer.adapter, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"epochs": 1.5}, "epochs 1.5"),
        ({"batch_size": 0}, r"1\.\.32"),
        ({"batch_size": 33}, r"1\.\.32"),
        ({"batch_size": True}, "batch_size True"),
        ({"learning_rate": 0.0}, "positive"),
        ({"learning_rate": -1.0}, "positive"),
        ({"learning_rate": float("nan")}, "positive"),
        ({"learning_rate": 1e39}, "float32"),
        ({"learning_rate": "fast"}, "number"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_impossible_settings_are_refused(
    changes: dict[str, Any], message: str, trainer: Trainer, examples: Examples
) -> None:
    before = trainer.adapter
    with pytest.raises(DataError, match=message):
        fit(trainer, examples, **changes)
    assert same(trainer.adapter, before)


def test_a_batch_larger_than_the_data_is_cut(trainer: Trainer, examples: Examples) -> None:
    x, y = examples
    assert fit(trainer, (x[:3], y[:3]), batch_size=32, epochs=1).steps == 1


def test_save_and_restore_keep_the_optimiser(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    first, second = Trainer(bundle), Trainer(bundle)
    fit(first, examples)
    first.save(tmp_path)
    second.restore(tmp_path)
    assert same(first.adapter, second.adapter)
    fit(first, examples)
    fit(second, examples)
    assert same(first.adapter, second.adapter)


def test_restoring_nothing_or_another_bundles_state_is_refused(
    bundle_paths: dict[str, Path], key: Any, tmp_path: Path
) -> None:
    sgd, adam = (
        Trainer(Bundle.load(bundle_paths[name], trusted_keys=[key.public_key()]))
        for name in ("sgd", "adam")
    )
    with pytest.raises(CheckpointError, match="holds no saved trainer"):
        sgd.restore(tmp_path)
    adam.save(tmp_path)
    before = sgd.adapter
    with pytest.raises(CheckpointError, match="the bundle that it was saved with"):
        sgd.restore(tmp_path)
    assert same(sgd.adapter, before)


def test_release_keeps_the_adapter(trainer: Trainer, examples: Examples) -> None:
    fit(trainer, examples)
    before, predicted = trainer.adapter, trainer.predict(examples[0])
    trainer.release()
    assert same(trainer.adapter, before)
    np.testing.assert_array_equal(trainer.predict(examples[0]), predicted)
    fit(trainer, examples)


def test_predicting_while_training_sees_whole_adapters(
    trainer: Trainer, examples: Examples
) -> None:
    x, y = examples
    failures: list[BaseException] = []
    training = threading.Event()

    def predict() -> None:
        try:
            while not training.is_set():
                total = trainer.predict(x).sum(1)
                np.testing.assert_allclose(total, 1, rtol=1e-5)
        except BaseException as error:  # a thread's failure must reach the test
            failures.append(error)

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        fit(trainer, (x, y), epochs=100)
    finally:
        training.set()
        thread.join(timeout=30)
    assert not failures


def test_a_missing_engine_gives_the_line_to_type(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "rootlet_runtime.engines.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="pip install rootlet"):
        Trainer(bundle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"engine": "tpu"}, "choose one of litert, onnxruntime"), ({"num_threads": 0}, "at least 1")],
)
def test_an_unknown_engine_is_named(
    arguments: dict[str, Any], message: str, bundle: Bundle
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(bundle, **arguments)
