"""The participant with a trainer that learns by adding one: what it answers, refuses and keeps."""

import types
from dataclasses import replace

import numpy as np
import pytest

from rootlet import protocol
from rootlet.compression import Compression
from rootlet.data import ArrayData
from rootlet.energy_account import Allowance
from rootlet.fleet.envelope import FleetRequest
from rootlet.fleet.objects import records_bytes
from rootlet.participant import Participant, RoundLimits
from rootlet.protocol import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.energy import INSTRUCTIONS_PER_MAC, PJ_PER_INSTRUCTION, Energy, Work
from rootlet_runtime.errors import AdapterError, DataError, DivergedError, NonFiniteLossError
from rootlet_runtime.fit import FitProgress, FitResult
from rootlet_runtime.replay import Replay
from rootlet_runtime.schedule import ROUND
from rootlet_runtime.trainer import EvaluateResult

SHA = "cd" * 32
X, Y = np.zeros((10, 2), np.float32), np.zeros(10, np.int64)
ENERGY = Energy(joules=0.5, method="estimated", source="operations", work=Work())
MAC_J = (4.6 + PJ_PER_INSTRUCTION * INSTRUCTIONS_PER_MAC) * 1e-12  # in float32
COST = {"train_macs_float32": 10**6, "predict_macs_float32": 10**5, "weight_bytes": 1000}


class AddingTrainer:
    """`fit` adds 1 to the adapter for each epoch; the metric is the adapter's first value."""

    measures_energy = False
    max_batch = 32

    def __init__(self, task="classification"):
        manifest = types.SimpleNamespace(
            name="toy", version=2, task=task, max_batch=32, cost=COST, latent=None
        )
        self.bundle = types.SimpleNamespace(manifest=manifest, manifest_sha256=SHA)
        self._adapter = {"w": np.full(3, -7, np.float32)}
        self.fits = []
        self.fails_with = None

    @property
    def adapter(self):
        return {name: array.copy() for name, array in self._adapter.items()}

    def load_adapter(self, arrays):
        if {name: array.shape for name, array in arrays.items()} != {"w": (3,)}:
            raise AdapterError("missing tensors ['w']")
        self._adapter = {name: array.copy() for name, array in arrays.items()}

    def evaluate(self, x, y):
        value = float(self._adapter["w"][0])
        return EvaluateResult(loss=1 - value, metric=value, examples=len(x))

    def fit(self, x, y, *, epochs, progress, **options):
        self.fits.append({"epochs": epochs, **options})
        for done in range(epochs):
            self._adapter = {name: array + 1 for name, array in self._adapter.items()}
            if self.fails_with:
                raise self.fails_with
            if progress(report(done)) is False:
                return result(done + 1, len(x), stopped=True)
        return result(epochs, len(x), stopped=False)


def report(done):
    return FitProgress(
        epoch=done, epochs=2, step=done, steps=2, loss=1.0, metric=0.0, learning_rate=0.1,
        rolled_back=0, reason="", energy=ENERGY,
    )  # fmt: skip


def result(epochs, n, *, stopped):
    return FitResult(
        steps=epochs, examples=epochs * n, loss=0.5, metric=0.0, seconds=0.25, energy=ENERGY,
        ended_by="progress" if stopped else "steps", resumed_from_step=0,
    )  # fmt: skip


class Data:
    def __init__(self, rows=10, holdout=4):
        self.rows, self.held_out = rows, holdout

    def train(self):
        return X[: self.rows], Y[: self.rows]

    def holdout(self):
        return None if self.held_out is None else (X[: self.held_out], Y[: self.held_out])


def ask(kind="train", *, n_bytes=1234, records=None, **changes):
    values = {
        "adapter": {"w": np.zeros(3, np.float32)},
        "bundle": "toy",
        "bundle_version": 2,
        "manifest_sha256": SHA,
        "round": 1,
    }
    if kind == "train":
        values |= {"epochs": 2, "batch_size": 8, "learning_rate": 0.1}
    request = (TrainRequest if kind == "train" else EvaluateRequest)(**(values | changes))
    return FleetRequest(7, "1", kind, request.to_records() if records is None else records, n_bytes)


def test_training_is_measured_before_and_after(tmp_path):
    trainer = AddingTrainer()
    rng = np.random.default_rng(0)
    answer = Participant(trainer, Data(), rng=rng, checkpoint_dir=tmp_path).answer(ask())
    reply = TrainReply.from_records(answer.records)
    assert answer.error == ""
    assert reply.adapter["w"].tolist() == [2.0] * 3
    assert (reply.received, reply.trained, reply.loss) == (0.0, 2.0, 0.5)
    assert (reply.num_examples, reply.train_s, reply.bytes_down) == (10, 0.25, 1234)
    assert reply.bytes_up == records_bytes({"arrays": answer.records["arrays"]})
    weights = COST["weight_bytes"] * 1300e-12 / 8
    assert reply.energy_estimated_j == pytest.approx(
        20 * MAC_J * 10**6 + 2 * weights + 8 * MAC_J * 10**5 + 2 * weights
    )
    assert trainer.adapter["w"].tolist() == [2.0] * 3  # the device keeps what it trained
    (fit,) = trainer.fits
    held_out = fit.pop("held_out")
    assert (len(held_out[0]), len(held_out[1])) == (4, 4)
    expected = {
        "epochs": 2, "batch_size": 8, "learning_rate": 0.1, "rng": rng,
        "checkpoint_dir": tmp_path, "schedule": ROUND, "energy_limit_j": None, "elastic": None,
    }  # fmt: skip
    assert {name: fit[name] for name in expected} == expected


def test_evaluation_leaves_the_adapter_alone():
    trainer = AddingTrainer()
    answer = Participant(trainer, Data()).answer(
        ask("evaluate", adapter={"w": np.full(3, 0.5, np.float32)})
    )
    reply = EvaluateReply.from_records(answer.records)
    assert (reply.metric, reply.received, reply.loss, reply.num_examples) == (
        "accuracy",
        0.5,
        0.5,
        4,
    )
    assert trainer.adapter["w"].tolist() == [-7.0] * 3


def test_regression_reports_errors():
    answer = Participant(AddingTrainer("regression"), Data()).answer(ask())
    assert {"error_received", "error_trained"} <= set(answer.records["metrics"])


@pytest.mark.parametrize("holdout", [None, 0])
def test_without_held_out_examples_the_training_ones_are_measured(holdout):
    answer = Participant(AddingTrainer(), Data(holdout=holdout)).answer(ask("evaluate"))
    assert answer.records["metrics"]["num-examples"] == 10


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (ask(manifest_sha256="00" * 32), protocol.ERROR_REFUSED, "install the same bundle"),
        (ask("evaluate", manifest_sha256="00" * 32), protocol.ERROR_REFUSED, "same bundle"),
        (ask(epochs=21), protocol.ERROR_REFUSED, "epochs is 21; this device accepts at most 20"),
        (ask(batch_size=33), protocol.ERROR_REFUSED, "batch_size is 33"),
        (ask(learning_rate=11.0), protocol.ERROR_REFUSED, "learning_rate is 11"),
        (ask(adapter={"v": np.zeros(3, np.float32)}), protocol.ERROR_REFUSED, "missing tensors"),
        (ask(records={}), protocol.ERROR_MALFORMED, "missing"),
        (FleetRequest(7, "1", "query", {}, 0), protocol.ERROR_REFUSED, "'query' is unknown"),
    ],
)
def test_refusals_say_why_and_keep_the_adapter(request_, code, reason):
    trainer = AddingTrainer()
    answer = Participant(trainer, Data()).answer(request_)
    assert (answer.records, answer.code) == ({}, code)
    assert reason in answer.error
    assert trainer.adapter["w"].tolist() == [-7.0] * 3
    assert trainer.fits == []


def test_limits_can_be_set():
    limits = RoundLimits(epochs=1, learning_rate=0.01)
    participant = Participant(AddingTrainer(), Data(), limits=limits)
    assert "epochs is 2" in participant.answer(ask()).error
    assert "learning_rate is 0.1" in participant.answer(ask(epochs=1)).error
    with pytest.raises(ValueError, match="epochs >= 1"):
        RoundLimits(epochs=0)
    with pytest.raises(ValueError, match="learning_rate > 0"):
        RoundLimits(learning_rate=float("nan"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NonFiniteLossError("loss is nan"), "loss is nan"),
        (
            DivergedError("accuracy fell to 3%"),
            "training made the adapter worse; lower the learning",
        ),
        (DataError("y: label 7 of /home/ann"), "this device's own log says more"),
        (ZeroDivisionError("ann"), "this device's own log says more"),
    ],
)
def test_a_failing_training_is_undone_and_its_text_stays_on_the_device(error, told, caplog):
    trainer = AddingTrainer()
    trainer.fails_with = error
    participant = Participant(trainer, Data())
    answer = participant.answer(ask())
    assert answer.code == protocol.ERROR_FAILED
    assert answer.error.startswith(f"{type(error).__name__}: {told}")
    assert "3%" not in answer.error
    assert f"train request failed: {error}" in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, ZeroDivisionError)  # a fault of ours
    assert trainer.adapter["w"].tolist() == [-7.0] * 3
    trainer.fails_with = None
    assert participant.answer(ask()).error == ""  # the device lives on


def test_a_device_without_examples_says_so():
    answer = Participant(AddingTrainer(), Data(rows=0)).answer(ask())
    assert answer.code == protocol.ERROR_REFUSED
    assert "no examples yet" in answer.error


def test_an_interrupted_training_has_no_answer_and_is_undone():
    trainer = AddingTrainer()
    assert Participant(trainer, Data()).answer(ask(), should_stop=lambda: True) is None
    assert trainer.adapter["w"].tolist() == [-7.0] * 3


def test_a_round_that_cannot_fit_its_budget_is_refused_before_it_starts():
    """Two epochs of 10 examples, and 4 batches whose 1000 bytes cost 0.16 uJ each."""
    needed = 20 * MAC_J * 10**6 + 4 * COST["weight_bytes"] * 1300e-12 / 8
    trainer, allowance = AddingTrainer(), Allowance(limit_j=0.99 * needed)
    answer = Participant(trainer, Data(), allowance=allowance).answer(ask())
    assert answer.code == protocol.ERROR_REFUSED
    assert f"the round needs {needed:.3g} J (estimated)" in answer.error
    assert f"at most {0.99 * needed:.3g} J" in answer.error
    assert trainer.fits == []
    enough = Participant(trainer, Data(), allowance=Allowance(limit_j=1.01 * needed)).answer(ask())
    assert enough.error == ""
    assert trainer.fits[0]["energy_limit_j"] == 1.01 * needed


def test_replayed_rows_are_part_of_what_a_round_needs():
    """Half of each batch is replayed: twice the steps, twice the rows."""
    replay = Replay(buffer=range(100), fraction=0.5)
    continual = types.SimpleNamespace(
        replay=replay, distillation=0.0, erasures=0, learnt=lambda *_, **__: None
    )
    weights = COST["weight_bytes"] * 1300e-12 / 8
    needed = (
        6 * (8 * MAC_J * 10**6 + weights) - 2 * 2 * MAC_J * 10**6
    )  # two epochs of 3 steps: 4, 4 and 2 fresh
    for share, refused in ((0.999, True), (1.001, False)):
        participant = Participant(
            AddingTrainer(), Data(), allowance=Allowance(limit_j=share * needed),
            continual=continual,
        )  # fmt: skip
        assert ("the round needs" in participant.answer(ask()).error) == refused


def test_a_round_that_a_meter_stops_is_refused_and_undone():
    trainer = AddingTrainer()
    trainer.measures_energy = True

    def run_dry(x, y, **options):
        trainer.load_adapter({"w": np.full(3, 5, np.float32)})
        return replace(result(1, len(x), stopped=False), ended_by="energy")

    trainer.fit = run_dry
    participant = Participant(trainer, Data(), allowance=Allowance(limit_j=1e-9))
    answer = participant.answer(ask())
    assert answer.code == protocol.ERROR_REFUSED
    assert "stopped after 1 steps" in answer.error
    assert trainer.adapter["w"].tolist() == [-7.0] * 3


def test_the_last_fit_can_be_asked_for():
    trainer = AddingTrainer()
    participant = Participant(trainer, Data())
    assert participant.last_fit is None
    participant.answer(ask())
    assert participant.last_fit.steps == 2
    trainer.fails_with = ZeroDivisionError()
    participant.answer(ask())
    assert participant.last_fit is None


def test_a_compressed_update_is_what_was_learnt():
    trainer = AddingTrainer()
    compression = Compression(kind="int8")
    answer = Participant(trainer, Data()).answer(ask(compression=compression))
    reply = TrainReply.from_records(answer.records)
    like = {"w": np.zeros(3, np.float32)}
    np.testing.assert_allclose(compression.decode(reply.update, like)["w"], [2.0] * 3, rtol=1e-6)
    assert reply.bytes_up == records_bytes({"update": answer.records["update"]})
    assert trainer.adapter["w"].tolist() == [2.0] * 3  # the device keeps what it trained, exactly


def test_a_proximal_term_holds_the_adapter_near_the_received_one(mlp_bundle, tmp_path):
    """FedProx on a real bundle: the larger mu, the nearer; the weights are the request's."""
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        start, moved = bundle.initial_adapter(), []
        about = {
            "bundle": bundle.manifest.name, "bundle_version": bundle.manifest.version,
            "manifest_sha256": bundle.manifest_sha256, "adapter": start,
        }  # fmt: skip
        for mu in (0.0, 10.0, 1e6):
            data = ArrayData.split((mlp_bundle.x[:64], mlp_bundle.y[:64]))
            participant = Participant(Trainer(bundle), data, rng=np.random.default_rng(0))
            answer = participant.answer(ask(**about, proximal_mu=mu))
            trained = TrainReply.from_records(answer.records).adapter
            moved.append(sum(float(np.square(trained[n] - start[n]).sum()) for n in start))
    # lr mu = 1 halves the distance after every step; lr mu = 1e5 leaves 1e-5 of one step
    assert moved[0] > 2 * moved[1] > 0
    assert moved[2] < 1e-6 * moved[0]
