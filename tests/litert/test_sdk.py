"""LiteRT chosen from the SDK: a client, a round, and what the bundle must carry for it."""

from dataclasses import replace

import numpy as np
import pytest

from rootlet import DeviceClient, DeviceConditions, TrainConfig
from rootlet.data import ArrayData
from rootlet.errors import ConfigError
from rootlet.fleet.envelope import FleetRequest
from rootlet.participant import Participant
from rootlet.protocol import ERROR_REFUSED, TrainReply, TrainRequest
from rootlet_runtime import Bundle, Trainer, write_bundle
from rootlet_runtime.engines import litert
from rootlet_runtime.errors import DataError

GOOD = DeviceConditions(charging=True, battery_level=1.0, unmetered=True, idle=True)


def examples(n=37):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n)


def test_a_client_trains_and_predicts_with_the_engine_it_is_given(bundle, tmp_path, monkeypatch):
    opened = []
    engine = litert.LitertEngine
    monkeypatch.setattr(litert, "LitertEngine", lambda *made: opened.append(made) or engine(*made))
    outputs = {}
    for name in ("onnxruntime", "litert"):
        train = TrainConfig(epochs=2, batch_size=8, learning_rate=0.05, engine=name)
        with DeviceClient(
            bundle, tmp_path / name, train=train, conditions=lambda: GOOD,
            data=ArrayData(examples(), examples()),
        ) as client:  # fmt: skip
            before = client.predict(examples()[0])
            client._learner.trainer.fit(
                *examples(), epochs=2, batch_size=8, learning_rate=0.05,
                rng=np.random.default_rng(0),
            )  # fmt: skip
            client._learner.finish()
            outputs[name] = client.predict(examples()[0])
            assert client.train_locally().ended_by == "steps"
    assert len(opened) == 2  # one trains and one predicts
    assert np.abs(outputs["litert"] - before).max() > 0.01
    np.testing.assert_allclose(outputs["litert"], outputs["onnxruntime"], rtol=1e-4, atol=1e-6)


def ask(bundle, batch_size):
    request = TrainRequest(
        adapter=bundle.initial_adapter(), bundle=bundle.manifest.name, bundle_version=3,
        manifest_sha256=bundle.manifest_sha256, round=1, epochs=2, batch_size=batch_size,
        learning_rate=0.05,
    )  # fmt: skip
    return FleetRequest(7, "1", "train", request.to_records(), 0)


def test_a_round_is_the_same_with_either_engine(bundle):
    replies = [
        TrainReply.from_records(
            Participant(
                Trainer(bundle, engine=name),
                ArrayData(examples(), examples()),
                rng=np.random.default_rng(0),
            )
            .answer(ask(bundle, 8))
            .records
        )
        for name in ("onnxruntime", "litert")
    ]
    for name, value in replies[0].adapter.items():
        np.testing.assert_allclose(replies[1].adapter[name], value, rtol=1e-4, atol=1e-6)


def test_a_batch_beyond_the_signatures_is_refused_before_it_starts(bundle, tmp_path):
    """The bundle takes 32 examples a step, its LiteRT model 8."""
    participant = Participant(Trainer(bundle, engine="litert"), ArrayData(examples(), examples()))
    answer = participant.answer(ask(bundle, 9))
    assert answer.code == ERROR_REFUSED
    assert "batch_size is 9; this device accepts at most 8" in answer.error
    with pytest.raises(ConfigError, match="batch_size is 9, above the 8"):
        DeviceClient(bundle, tmp_path, train=TrainConfig(engine="litert", batch_size=9))


def test_a_bundle_without_the_model_and_an_unknown_engine_are_refused(make_files, tmp_path):
    manifest, files = make_files("sgd")
    del files["model.tflite"]
    write_bundle(tmp_path / "onnx.rootlet", replace(manifest, litert=None), files, None)
    bundle = Bundle.load(tmp_path / "onnx.rootlet", trusted_keys=[], allow_unsigned=True)
    with pytest.raises(DataError, match=r"litert_batches=\(16,\)"):
        DeviceClient(bundle, tmp_path / "state", train=TrainConfig(engine="litert"))
    with pytest.raises(ConfigError, match="give one of litert, onnxruntime"):
        TrainConfig(engine="tensorrt")
