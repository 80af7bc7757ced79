"""The ClientApp for stock SuperNodes answers as a rootlet device does."""

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from rootlet.flower import to_record_dict
from rootlet.protocol import EvaluateRequest, TrainRequest
from rootlet_runtime import Bundle
from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.node_app import app
from rootlet_server.federation.replies import check_evaluate_reply, check_train_reply

pytestmark = pytest.mark.usefixtures("in_a_run")


def context(**node_config):
    return Context(1, 1, node_config, RecordDict(), {})


@pytest.fixture
def owner(mlp_bundle, tmp_path):
    """The configuration that a SuperNode's owner gives."""
    np.savez(tmp_path / "mine.npz", x=mlp_bundle.x[:100], y=mlp_bundle.y[:100])
    return {
        "bundle": str(mlp_bundle.path),
        "trusted-key": str(mlp_bundle.public_key_path),
        "data": str(tmp_path / "mine.npz"),
    }


@pytest.fixture
def of_bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        yield {
            "adapter": bundle.initial_adapter(),
            "bundle": bundle.manifest.name,
            "bundle_version": bundle.manifest.version,
            "manifest_sha256": bundle.manifest_sha256,
            "round": 1,
        }


def ask(request, kind, owner):
    message = Message(to_record_dict(request.to_records()), 1, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return app(message, context(**owner))


def test_it_trains(owner, of_bundle):
    request = TrainRequest(**of_bundle, epochs=1, batch_size=8, learning_rate=0.1)
    metrics, _, _ = check_train_reply(
        ask(request, "train", owner),
        received=of_bundle["adapter"],
        metric="accuracy",
        max_examples=100,
    )
    assert metrics["num-examples"] == 80  # a fifth is held out


def test_it_evaluates(owner, of_bundle):
    reply = ask(EvaluateRequest(**of_bundle), "evaluate", owner)
    metrics = check_evaluate_reply(reply, metric="accuracy", max_examples=100)
    assert metrics["num-examples"] == 20


def test_files_that_the_owner_did_not_name_are_asked_for(owner, of_bundle):
    del owner["data"]
    with pytest.raises(ServeConfigError, match="lacks data"):
        ask(EvaluateRequest(**of_bundle), "evaluate", owner)
