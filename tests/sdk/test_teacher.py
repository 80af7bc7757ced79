"""What holds an adapter: in a round its last accepted self as the teacher, and elastic weights."""

import numpy as np
import pytest
import torch

from rootlet import DeviceClient, DeviceConditions, TrainConfig
from rootlet.continual import Continual, ContinualConfig
from rootlet.data import ArrayData
from rootlet.energy_account import Allowance
from rootlet.fleet.envelope import FleetRequest
from rootlet.participant import Participant
from rootlet.protocol import ERROR_REFUSED, TrainReply, TrainRequest
from rootlet_runtime import Bundle, Meter, Trainer, count_work
from rootlet_runtime.errors import AdapterError
from rootlet_runtime.schedule import ROUND
from rootlet_server.compiler import CompileConfig, LoraConfig, PrivacyConfig, compile_bundle

GOOD = DeviceConditions(charging=True, battery_level=1.0, unmetered=True, idle=True)
EPOCHS, BATCH, RATE, WEIGHT = 3, 8, 0.3, 0.8


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)).astype(np.float32)
    return x, x[:, :3].argmax(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.rootlet"
    compile_bundle(
        torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)),
        calibration_x=drawn(64, 0)[0],
        config=CompileConfig(adapter=LoraConfig(rank=4), distillation=True, max_batch=32),
        name="teacher",
        version=1,
        signing_key=None,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[], allow_unsigned=True)


def moved(bundle, seed):
    rng = np.random.default_rng(seed)
    start = bundle.initial_adapter()
    return {
        name: (value + rng.normal(0, 0.5, value.shape)).astype(np.float32)
        for name, value in start.items()
    }


def answered(bundle, tmp_path, accepted, sent, allowance=None):
    trainer = Trainer(bundle, meter=Meter(tmp_path / "no-sysfs"))
    trainer.load_adapter(accepted)
    data = ArrayData(drawn(40, 1), drawn(20, 2))
    config = ContinualConfig(distillation=WEIGHT)
    participant = Participant(
        trainer,
        data,
        rng=np.random.default_rng(5),
        continual=Continual(config, bundle.manifest, tmp_path / "replay", data.holdout),
        allowance=allowance,
    )
    request = TrainRequest(
        adapter=sent,
        bundle=bundle.manifest.name,
        bundle_version=1,
        manifest_sha256=bundle.manifest_sha256,
        round=1,
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=RATE,
    )
    return participant.answer(FleetRequest(7, "1", "train", request.to_records(), 0))


def taught(bundle, start, teacher):
    trainer = Trainer(bundle)
    trainer.load_adapter(start)
    trainer.fit(
        *drawn(40, 1),
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=RATE,
        rng=np.random.default_rng(5),
        schedule=ROUND,
        held_out=drawn(20, 2),
        distillation=WEIGHT,
        teacher=teacher,
    )
    return trainer.adapter


def test_a_round_is_taught_by_the_last_accepted_adapter(bundle, tmp_path):
    accepted, sent = moved(bundle, 1), moved(bundle, 2)
    reply = TrainReply.from_records(answered(bundle, tmp_path, accepted, sent).records)
    expected, wrong = (taught(bundle, sent, teacher) for teacher in (accepted, sent))
    for name, value in reply.adapter.items():
        np.testing.assert_array_equal(value, expected[name])
    assert max(np.abs(wrong[name] - value).max() for name, value in expected.items()) > 0.01


def test_the_default_teacher_is_the_adapter_from_before(bundle):
    start = moved(bundle, 2)
    named, default = (taught(bundle, start, teacher) for teacher in (start, None))
    for name, value in named.items():
        np.testing.assert_array_equal(value, default[name])


def test_a_teacher_of_another_bundle_is_refused_and_nothing_is_changed(bundle):
    trainer = Trainer(bundle)
    before = trainer.adapter
    with pytest.raises(AdapterError):
        trainer.fit(
            *drawn(8, 1), epochs=1, batch_size=8, learning_rate=0.1,
            rng=np.random.default_rng(0), distillation=0.5, teacher={"w": np.zeros(3)},
        )  # fmt: skip
    for name, value in trainer.adapter.items():
        np.testing.assert_array_equal(value, before[name])


def test_the_teachers_outputs_are_work_too(bundle, tmp_path):
    """40 examples in two batches of predictions; five batches of steps in each epoch."""
    cost = bundle.manifest.cost
    steps = count_work(cost, train_examples=EPOCHS * 40, train_batches=EPOCHS * 5)
    trainer = Trainer(bundle, meter=Meter(tmp_path / "no-sysfs"))
    options = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE, "guard": None}
    x, y = drawn(40, 1)
    found = trainer.fit(x, y, rng=np.random.default_rng(0), distillation=WEIGHT, **options)
    batches = -(-40 // bundle.manifest.max_batch)
    outputs = count_work(cost, predict_examples=40, predict_batches=batches)
    assert found.energy.work == steps + outputs
    needed = (steps + outputs).estimated_j
    for share, code in ((0.999, ERROR_REFUSED), (2.0, 0)):
        allowance = Allowance(limit_j=share * needed)
        adapter = bundle.initial_adapter()
        answer = answered(bundle, tmp_path, adapter, adapter, allowance)
        assert (answer.code if answer.error else 0) == code, answer.error


@pytest.fixture(scope="module")
def elastic_bundle(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("elastic") / "elastic.rootlet"
    compile_bundle(
        torch.nn.Sequential(torch.nn.Linear(6, 3)),
        calibration_x=drawn(64, 0)[0],
        config=CompileConfig(rule="head_only", privacy=PrivacyConfig(), max_batch=32),
        name="elastic",
        version=1,
        signing_key=None,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[], allow_unsigned=True)


def test_elastic_weights_hold_what_an_earlier_training_learnt(elastic_bundle, tmp_path):
    """The second training has other labels; the stronger the pull, the less it moves."""
    first, second = drawn(64, 1), drawn(64, 2)
    second = (second[0], (second[1] + 1) % 3)
    moves = []
    for strength in (0.0, 1e5):
        folder = tmp_path / f"{strength}"
        for data in (first, second):  # a client each: the weights outlive the process
            train = TrainConfig(
                epochs=5, batch_size=16, learning_rate=0.3,
                continual=ContinualConfig(ewc=strength, gate=None),
            )  # fmt: skip
            with DeviceClient(
                elastic_bundle, folder, train=train, conditions=lambda: GOOD,
                data=ArrayData(data, None),
            ) as client:  # fmt: skip
                before = client._learner.trainer.adapter
                client.train_locally()
                after = client._learner.trainer.adapter
        moves.append(max(np.abs(after[name] - value).max() for name, value in before.items()))
    assert moves[1] < 0.2 * moves[0]
