"""The participant behind a stock ClientApp."""

import subprocess
import sys
import types

import numpy as np
import pytest
from flwr.app import Array, Context, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from rootlet import flower
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord
from rootlet.protocol import ERROR_REFUSED, EvaluateReply, EvaluateRequest
from rootlet_runtime.trainer import EvaluateResult

SHA = "ee" * 32


class OneTrainer:
    """A trainer whose accuracy is 1 over the number of examples."""

    def __init__(self, bundle, *, num_threads):
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
