"""Makes fleet.json: what the Python SDK says on Flower's Fleet API, byte for byte.

The Kotlin library is held to it; ``tests/sdk/test_fleet_vectors.py`` holds the SDK itself to it.
Run it after a deliberate change of the wire: ``python tests/vectors/make_fleet_vectors.py``.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from rootlet.errors import RecordError, RequestRefusedError
from rootlet.fleet.calls import FleetCalls
from rootlet.fleet.envelope import Answer, Envelope, seal_reply
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.npy import to_npy
from rootlet.fleet.objects import DEFAULT_LIMITS, encode_message, records_bytes
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord, encode_values
from rootlet.protocol import (
    ERROR_MALFORMED,
    ERROR_REFUSED,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from rootlet.request_checks import check_bounds, check_bundle

PATH = Path(__file__).with_name("fleet.json")

DTYPES = ("float32", "float64", "int8", "int32", "int64", "uint8", "uint32", "uint64", "bool")
CONFIG = {
    "text": "Grüße 🌱",
    "empty": "",
    "whole": -3,
    "large": 2**64 - 1,
    "zero": 0,
    "fraction": 0.1,
    "yes": True,
    "no": False,
    "raw": b"\x00\xff",
    "floats": [0.5, -0.0],
    "wholes": [1, -1, 300],
    "larges": [2**63],
    "flags": [True, False],
    "texts": ["a", ""],
    "raws": [b"\x01", b""],
    "nothing": [],
}
METRICS = {"num-examples": 7, "loss": 0.25, "zero": 0.0, "many": [1.5, 2.5], "counts": [3, -4]}
NODE, RUN, SESSION = 2**63 + 5, 77, "a-session"
PEM = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
MANIFEST = "ab" * 32
PLAIN = {
    "protocol": 1,
    "bundle": "tiny",
    "bundle_version": 2,
    "manifest_sha256": MANIFEST,
    "round": 3,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.5,
}
CHANGES: list[dict[str, Any]] = [
    {"protocol": 2},
    {"protocol": None},
    {"bundle": ""},
    {"bundle": 5},
    {"bundle_version": 0},
    {"manifest_sha256": "AB"},
    {"manifest_sha256": "cd" * 32},
    {"round": -1},
    {"round": None},
    {"epochs": 0},
    {"epochs": 21},
    {"epochs": 2.0},
    {"epochs": True},
    {"batch_size": 0},
    {"batch_size": 33},
    {"learning_rate": 0.0},
    {"learning_rate": 11.0},
    {"learning_rate": 1},
    {"top_k": 0.5},
    {"surprise": 1},
]
"""Each makes the plain request wrong in one way; None takes the setting away."""


def adapter() -> dict[str, np.ndarray]:
    """Two arrays, one of them not square."""
    return {
        "layer.a": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
        'b"ias\\é': np.array([1e-8], np.float32),
    }


def vectors() -> dict[str, Any]:
    """What the file holds."""
    records = {
        "arrays": ArrayRecord(adapter() | {"same": adapter()["layer.a"]}),
        "config": ConfigRecord(CONFIG),
        "metrics": MetricRecord(METRICS),
    }
    asked = MESSAGES["Message"](
        metadata=MESSAGES["Metadata"](
            run_id=RUN,
            dst_node_id=NODE,
            group_id="3",
            ttl=60.5,
            message_type="train",
            created_at=1.75e9,
            src_node_id=1,
        )
    )
    objects, message_id = encode_message(asked, records)
    asked.metadata.message_id = message_id
    envelope = Envelope(asked.metadata, objects.tree(message_id))
    reply = seal_reply(envelope, Answer(records), now=1.75e9 + 1)
    failed = seal_reply(envelope, Answer({}, "too much", ERROR_REFUSED), now=1.75e9 + 1)
    pulled = MESSAGES["PullMessagesResponse"](
        messages_list=[asked], message_object_trees=[envelope.tree]
    )
    return {
        "npy": [
            {
                "dtype": name,
                "shape": list(array.shape),
                "data": array.tobytes().hex(),
                "npy": to_npy(array).hex(),
            }
            for name in DTYPES
            for array in (np.arange(6).reshape(2, 3).astype(name), np.ones((), name))
        ],
        "fortran": {
            "data": np.arange(24, dtype=np.float32).reshape(2, 3, 4).tobytes().hex(),
            "npy": to_npy(
                np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
            ).hex(),
        },
        "config": {"values": _plain(CONFIG), "body": encode_values(ConfigRecord(CONFIG)).hex()},
        "metrics": {"values": METRICS, "body": encode_values(MetricRecord(METRICS)).hex()},
        "message_id": message_id,
        "objects": {object_id: content.hex() for object_id, content in objects.contents.items()},
        "reply_objects": _sealed(reply),
        "failed_objects": _sealed(failed),
        "pulled": pulled.SerializeToString(deterministic=True).hex(),
        "calls": _calls(envelope, reply, failed),
        "refusals": [
            {"changes": change, "train": train, **_refusal(change, train)}
            for change in CHANGES
            for train in (True, False)
            if train or not set(change) & {"epochs", "batch_size", "learning_rate", "top_k"}
        ],
        "plain": PLAIN,
        "trained": _trained(),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return {"hex": value.hex()} if isinstance(value, bytes) else value

    return {name: plain(value) for name, value in values.items()}


def _sealed(reply: Any) -> dict[str, Any]:
    return {
        "message_id": reply.message_id,
        "ids": list(reply.contents),
        "root": reply.contents[reply.message_id].hex(),
    }


def _calls(envelope: Envelope, reply: Any, failed: Any) -> dict[str, str]:
    """Bodies of the requests, by call."""
    sent: dict[str, str] = {}

    def post(path: str, body: bytes) -> bytes:
        name = path.removeprefix("/v1/fleet/")
        sent[name if name not in sent else f"{name} again"] = body.hex()
        return b""

    calls = FleetCalls(
        SimpleNamespace(post=post),  # type: ignore[arg-type]
        node_key=SimpleNamespace(public_pem=PEM),  # type: ignore[arg-type]
        heartbeat_interval_s=15.0,
        limits=DEFAULT_LIMITS,
    )
    calls.node_id = NODE
    calls.register_node()
    calls.activate_node()
    calls.send_node_heartbeat(NODE)
    calls.pull_messages()
    calls.pull_object(RUN, envelope.message_id)
    calls.confirm_message_received(envelope)
    calls.push_messages(reply, runtime_s=0.0)
    calls.push_messages(failed, runtime_s=1.5)
    calls.push_object(RUN, SESSION, envelope.message_id, b"content")
    calls.deactivate_node()
    calls.unregister_node()
    return sent


def _refusal(change: dict[str, Any], train: bool) -> dict[str, Any]:
    """How a device of the bundle `tiny` 2 with a batch of 32 refuses a request."""
    names = PLAIN if train else list(PLAIN)[:5]
    config = {name: PLAIN[name] for name in names} | change
    config = {name: value for name, value in config.items() if value is not None}
    records = {"arrays": ArrayRecord(adapter()), "config": ConfigRecord(config)}
    bundle = SimpleNamespace(
        manifest_sha256=MANIFEST, manifest=SimpleNamespace(name="tiny", version=2)
    )
    try:
        asked = (TrainRequest if train else EvaluateRequest).from_records(records)
        check_bundle(bundle, asked)  # type: ignore[arg-type]
        if isinstance(asked, TrainRequest):
            check_bounds(asked, {"epochs": 20, "learning_rate": 10.0, "batch_size": 32})
    except RecordError as error:
        return {"error": str(error), "code": ERROR_MALFORMED}
    except RequestRefusedError as error:
        return {"error": str(error), "code": ERROR_REFUSED}
    raise AssertionError(f"{change} is accepted")


def _trained() -> dict[str, Any]:
    """The reply of a device whose work took 1.5 s and 2 J."""
    reply = TrainReply(
        metric="accuracy",
        adapter=adapter(),
        num_examples=9,
        loss=0.5,
        received=0.25,
        trained=0.75,
        train_s=1.5,
        energy_estimated_j=2.0,
        bytes_down=1234,
        bytes_up=records_bytes({"arrays": ArrayRecord(adapter())}),
    ).to_records()
    return {"metrics": encode_values(reply["metrics"]).hex(), "records": list(reply)}  # type: ignore[arg-type]


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
