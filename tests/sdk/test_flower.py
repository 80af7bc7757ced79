"""The participant behind a stock ClientApp."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from rootlet import flower
from rootlet.continual import Continual, ContinualConfig
from rootlet.data import ArrayData
from rootlet.energy import EnergyBudget
from rootlet.energy_account import EnergyAccount
from rootlet.errors import ConfigError
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord
from rootlet.learner import Learner
from rootlet.protocol import ERROR_REFUSED, EvaluateReply, EvaluateRequest, TrainRequest
from rootlet.state import StateDirectory
from rootlet.vault import EXAMPLES, LEARNT, KeyFile, Vault
from rootlet_runtime import Bundle, trainer
from rootlet_runtime.quality_gate import QualityGate
from rootlet_runtime.replay import ReplaySettings
from rootlet_runtime.trainer import EvaluateResult

SHA = "ee" * 32


class OneTrainer:
    """A trainer whose accuracy is 1 over the number of examples."""

    def __init__(self, bundle, *, engine, num_threads):
        manifest = types.SimpleNamespace(task="classification", name="toy", version=1)
        self.bundle = types.SimpleNamespace(manifest=manifest, manifest_sha256=SHA)
        self.adapter = {}
        self.made_with = (bundle, num_threads)

    def load_adapter(self, arrays):
        self.adapter = dict(arrays)

    def evaluate(self, x, y):
        return EvaluateResult(loss=0.5, metric=1 / len(x), examples=len(x))


class Data:
    def __init__(self, rows):
        self.rows = rows

    def train(self):
        return np.zeros((self.rows, 2), np.float32), np.zeros(self.rows, np.int64)

    def holdout(self):
        return None


def message(manifest_sha256=SHA, message_type="evaluate"):
    request = EvaluateRequest(
        adapter={"w": np.ones(2, np.float32)},
        bundle="toy",
        bundle_version=1,
        manifest_sha256=manifest_sha256,
        round=1,
    )
    metadata = Metadata(
        run_id=7, message_id="id", src_node_id=1, dst_node_id=5, reply_to_message_id="",
        group_id="1", created_at=1.8e9, ttl=60.0, message_type=message_type,
    )  # fmt: skip
    return make_message(metadata=metadata, content=flower.to_record_dict(request.to_records()))


def context(rows):
    config = {"rows": rows}
    return Context(run_id=7, node_id=5, node_config=config, state=RecordDict(), run_config={})


@pytest.fixture(autouse=True)
def _toy_trainer(monkeypatch):
    monkeypatch.setattr(flower, "Trainer", OneTrainer)


def test_a_stock_client_app_answers_as_a_device_does():
    app = flower.client_app("bundle", lambda context: Data(context.node_config["rows"]))
    reply = app(message(), context(rows=4))
    assert reply.metadata.reply_to_message_id == "id"
    answer = EvaluateReply.from_records(flower.from_record_dict(reply.content))
    assert (answer.received, answer.num_examples) == (0.25, 4)


def test_data_may_be_given_without_a_context():
    reply = flower.client_app("bundle", Data(2))(message(), context(rows=9))
    assert reply.content["metrics"]["num-examples"] == 2


def test_refusals_are_flower_errors():
    app = flower.client_app("bundle", Data(2))
    reply = app(message("00" * 32), context(rows=1))
    assert reply.error.code == ERROR_REFUSED
    assert "same bundle" in reply.error.reason


@pytest.fixture
def real(mlp_bundle, monkeypatch):
    monkeypatch.setattr(flower, "Trainer", trainer.Trainer)
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        yield bundle


def train_message(bundle, adapter):
    request = TrainRequest(
        adapter=adapter, bundle="digits", bundle_version=1,
        manifest_sha256=bundle.manifest_sha256, round=1, epochs=10, batch_size=16,
        learning_rate=0.05,
    )  # fmt: skip
    metadata = Metadata(
        run_id=7, message_id="id", src_node_id=1, dst_node_id=5, reply_to_message_id="",
        group_id="1", created_at=1.8e9, ttl=60.0, message_type="train",
    )  # fmt: skip
    return make_message(metadata=metadata, content=flower.to_record_dict(request.to_records()))


def test_a_node_with_a_state_directory_remembers_as_a_device_does(real, mlp_bundle, tmp_path):
    data = ArrayData((mlp_bundle.x[:60], mlp_bundle.y[:60]), (mlp_bundle.x[60:], mlp_bundle.y[60:]))
    continual = ContinualConfig(
        replay=ReplaySettings(quota_bytes=20_000), gate=QualityGate(alpha=0.5)
    )
    node = {"state_dir": lambda _: tmp_path / "node", "continual": continual}
    app = flower.client_app(real, data, **node)
    start = real.initial_adapter()
    trained = app(train_message(real, start), context(rows=1))
    assert not trained.has_error()
    vault = Vault(KeyFile(tmp_path / "node" / "keys.json"))
    kept = Continual(
        continual, real.manifest, tmp_path / "node" / "replay", data.holdout, vault.cipher(EXAMPLES)
    )
    assert kept.remembered == 60
    with StateDirectory(tmp_path / "node") as state:
        folder, spent = state.adapter(real.manifest_sha256), EnergyAccount(state).today()
    assert spent.joules > 0
    learner = Learner(real, folder, 1, kept, cipher=vault.cipher(LEARNT))
    for name, value in trained.content["arrays"].items():
        np.testing.assert_array_equal(learner.trainer.adapter[name], value.numpy())

    worse = {name: -value for name, value in learner.trainer.adapter.items()}
    assert not app(train_message(real, worse), context(rows=1)).has_error()
    after = Learner(real, folder, 1, kept, cipher=vault.cipher(LEARNT))
    for name, value in learner.trainer.adapter.items():
        np.testing.assert_array_equal(after.trainer.adapter[name], value)  # the gate kept it

    broke = flower.client_app(real, data, **node, energy=EnergyBudget(joules_per_day=spent.joules))
    refused = broke(train_message(real, start), context(rows=1))
    assert (refused.error.code, "the day's energy" in refused.error.reason) == (ERROR_REFUSED, True)


def test_a_round_beyond_its_energy_is_refused(real, mlp_bundle):
    data = ArrayData((mlp_bundle.x[:60], mlp_bundle.y[:60]), (mlp_bundle.x[60:], mlp_bundle.y[60:]))
    app = flower.client_app(real, data, energy=EnergyBudget(joules_per_round=1e-12))
    reply = app(train_message(real, real.initial_adapter()), context(rows=1))
    assert "this device spends at most" in reply.error.reason


def test_what_a_client_app_cannot_do_is_refused(real):
    for options, message in (
        ({"continual": ContinualConfig()}, "state_dir"),
        ({"energy": EnergyBudget(joules_per_day=1.0)}, "state_dir"),
        ({"state_dir": Path("x"), "continual": ContinualConfig(drift=True)}, "DeviceClient"),
        ({"state_dir": Path("x"), "continual": ContinualConfig(ewc=1.0)}, "DeviceClient"),
        ({"state_dir": Path("x"), "continual": ContinualConfig(distillation=0.5)}, "distillation"),
    ):
        with pytest.raises(ConfigError, match=message):
            flower.client_app(real, Data(2), **options)


def test_records_survive_both_conversions():
    records = {
        "arrays": ArrayRecord(w=np.arange(4, dtype=np.float32).reshape(2, 2)),
        "metrics": MetricRecord({"num-examples": 3, "loss": 0.5, "both": [1.0, 2.0]}),
        "config": ConfigRecord(name="x", flag=True, raw=b"1", many=["a", "b"]),
    }
    content = flower.to_record_dict(records)
    assert isinstance(content["arrays"]["w"], Array)
    back = flower.from_record_dict(content)
    assert {name: type(record) for name, record in back.items()} == {
        name: type(record) for name, record in records.items()
    }
    np.testing.assert_array_equal(back["arrays"]["w"], records["arrays"]["w"])
    assert (back["metrics"], back["config"]) == (records["metrics"], records["config"])


def test_without_flwr_the_remedy_is_named():
    code = (
        "import sys; sys.modules['flwr'] = None\n"
        "from rootlet_runtime.errors import MissingExtraError\n"
        "try:\n    import rootlet.flower\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "rootlet[server]"' in done.stdout
