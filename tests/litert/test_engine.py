"""One bundle, two engines: LiteRT against ONNX Runtime, through the trainer that devices use."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rootlet_runtime import Bundle, Trainer, write_bundle
from rootlet_runtime.engines import litert, open_engine
from rootlet_runtime.errors import DataError, MissingExtraError, TrainingError

FIT = {"epochs": 2, "batch_size": 8, "learning_rate": 0.1}


def examples(count=37):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 4)).astype(np.float32), rng.integers(0, 3, count)


def fit(trainer, **options):
    x, y = examples()
    return trainer.fit(x, y, rng=np.random.default_rng(5), **FIT, **options)


def assert_close(found, expected, tolerance=1e-5):
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance)


def test_ten_steps_agree(bundle, measure):
    found = measure(bundle, 0.1 if bundle.manifest.optimizer == "sgd" else 0.01)
    # Adam's second moment is a sum of squares, whose relative error is twice the gradient's.
    assert found.optimizer < 2e-5
    assert max(found.loss, found.adapter, found.evaluate, found.predict) < 1e-5


def test_a_fit_agrees(bundle):
    trainers = {name: Trainer(bundle, engine=name) for name in ("onnxruntime", "litert")}
    results = {name: fit(trainer) for name, trainer in trainers.items()}
    assert results["litert"].loss == pytest.approx(results["onnxruntime"].loss, rel=1e-5)
    assert results["litert"].steps == results["onnxruntime"].steps
    assert_close(trainers["litert"].adapter, trainers["onnxruntime"].adapter)
    x, y = examples()
    ours, theirs = (trainers[name].evaluate(x, y) for name in ("onnxruntime", "litert"))
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)
    assert theirs.metric == pytest.approx(ours.metric)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 20])
def test_every_number_of_examples_is_predicted_as_one_by_one(bundle, count):
    trainer = Trainer(bundle, engine="litert")
    x, _ = examples(count)
    together = trainer.predict(x)
    one_by_one = np.concatenate([trainer.predict(row[None]) for row in x])
    assert together.shape == (count, 3)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-6)
    np.testing.assert_allclose(together, Trainer(bundle).predict(x), rtol=1e-5)


def test_padding_adds_nothing(bundle):
    """Five examples in a signature of eight give the step that ONNX Runtime takes on five."""
    x, y = examples(5)
    trainers = [Trainer(bundle, engine=name) for name in ("onnxruntime", "litert")]
    for trainer in trainers:
        trainer.fit(x, y, epochs=1, batch_size=5, learning_rate=0.1, rng=np.random.default_rng(0))
    assert_close(trainers[1].adapter, trainers[0].adapter)


@pytest.mark.parametrize("engines", [("onnxruntime", "litert"), ("litert", "onnxruntime")])
def test_a_state_saved_by_one_engine_is_restored_by_the_other(bundle, tmp_path, engines):
    first, second = (Trainer(bundle, engine=name) for name in engines)
    fit(first)
    first.save(tmp_path)
    second.restore(tmp_path)
    for name, array in first.adapter.items():
        np.testing.assert_array_equal(second.adapter[name], array)
    fit(first)
    fit(second)
    assert_close(second.adapter, first.adapter)


def test_a_fit_begun_by_one_engine_is_ended_by_the_other(bundle, tmp_path):
    whole, begun, resumed = (
        Trainer(bundle, engine=name) for name in ("litert", "onnxruntime", "litert")
    )
    fit(whole)
    stopped = fit(begun, checkpoint_dir=tmp_path, progress=lambda p: p.step < 4)
    result = fit(resumed, checkpoint_dir=tmp_path)
    assert stopped.stopped
    assert result.resumed_from_step == 4
    assert_close(resumed.adapter, whole.adapter)


def test_released_and_opened_again_it_goes_on(bundle):
    through, released = (Trainer(bundle, engine="litert") for _ in range(2))
    for trainer in (through, released):
        fit(trainer)
    released.release()
    for trainer in (through, released):
        fit(trainer)
    for name, array in through.adapter.items():
        np.testing.assert_array_equal(released.adapter[name], array)


def test_a_batch_that_no_signature_holds_is_refused_and_changes_nothing(bundle):
    trainer = Trainer(bundle, engine="litert")
    before = trainer.adapter
    x, y = examples()
    with pytest.raises(DataError, match=r"batch_size 9.*at most 8.*litert_batches"):
        trainer.fit(x, y, epochs=1, batch_size=9, learning_rate=0.1, rng=np.random.default_rng(0))
    for name, array in before.items():
        np.testing.assert_array_equal(trainer.adapter[name], array)


def test_a_step_that_fails_leaves_the_state_before_it(bundle):
    """The engine is given an array that no signature takes, past the trainer's checks."""
    trainer = Trainer(bundle, engine="litert")
    x, y = examples(8)
    engine = open_engine("litert", bundle, 1)
    engine.load_state(trainer._engine.state())
    good = litert.Batch(x, y, np.ones(8, np.float32), 8)
    engine.step(good, 0.1)
    before = engine.state()
    with pytest.raises(TrainingError, match="train signature failed in LiteRT"):
        engine.step(litert.Batch(x.astype(np.complex64), y, good.w, 8), 0.1)
    after = engine.state()
    assert after.digest() == before.digest()
    engine.step(good, 0.1)
    assert engine.state().steps == 2


def test_the_state_is_the_callers_copy(bundle):
    engine = open_engine("litert", bundle, 1)
    engine.state().adapter["head.bias"][:] = 7
    assert not engine.state().adapter["head.bias"].any()


def test_a_bundle_without_a_model_says_how_to_get_one(make_files, tmp_path):
    manifest, files = make_files("sgd")
    del files["model.tflite"]
    path = tmp_path / "plain.rootlet"
    write_bundle(path, replace(manifest, litert=None), files, None)
    bundle = Bundle.load(path, trusted_keys=[], allow_unsigned=True)
    with pytest.raises(DataError, match=r"carries no LiteRT model.*litert_batches"):
        Trainer(bundle, engine="litert")


def test_a_missing_library_names_the_pip_line(bundle, monkeypatch):
    monkeypatch.setattr(litert, "LIBRARIES", ("no_such_library",))
    with pytest.raises(MissingExtraError, match=r"pip install 'rootlet\[litert\]'"):
        Trainer(bundle, engine="litert")


def test_training_loads_no_other_runtime(bundle_paths):
    program = f"""
import sys
import numpy as np
from rootlet_runtime import Bundle, Trainer
bundle = Bundle.load({str(bundle_paths["sgd"])!r}, trusted_keys=[], allow_unsigned=True)
heavy = {{"onnxruntime", "ai_edge_litert", "tflite_runtime", "torch"}}
assert not heavy & set(sys.modules)
Trainer(bundle, engine="litert").predict(np.zeros((3, 4)))
found = {{name.partition(".")[0] for name in sys.modules}} & heavy
assert found in ({{"ai_edge_litert"}}, {{"tflite_runtime"}}), found
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
