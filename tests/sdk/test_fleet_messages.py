"""The contract with flwr: our message table against the descriptors of the pinned release."""

import importlib
import importlib.metadata
import subprocess
import sys

import pytest
from google.protobuf.descriptor import FieldDescriptor

from rootlet.fleet.messages import MESSAGES, PACKAGE

PINNED_FLWR = "1.41.0"
MODULES = ("error", "fab", "fleet", "heartbeat", "message", "node", "recorddict", "run")

# Fields of flwr's that a device neither reads nor writes. A new one upstream fails the test below,
# so that somebody decides whether it matters.
LEFT_OUT = {
    "Metadata": {"src_task_id", "dst_task_id"},
    "PushMessagesResponse": {"results"},
    "RecordDict": {"items"},
    "Run": {
        *("override_config", "pending_at", "starting_at", "running_at", "flwr_aid", "federation"),
        *("bytes_sent", "bytes_recv", "clientapp_runtime", "primary_task_type"),
        *("primary_task_id", "series_id", "account_name"),
    },
    "Fab": {"verifications"},
}


def flwr_descriptors():
    descriptors = {}

    def collect(descriptor, prefix=""):
        descriptors[prefix + descriptor.name] = descriptor
        for nested in descriptor.nested_types:
            collect(nested, f"{prefix}{descriptor.name}.")

    for name in MODULES:
        module = importlib.import_module(f"flwr.proto.{name}_pb2")
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            collect(descriptor)
    return descriptors


def facts(field: FieldDescriptor):
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
        "message": field.message_type.full_name if field.message_type else None,
    }


def test_flwr_is_the_pinned_version():
    found = importlib.metadata.version("flwr")
    assert found == PINNED_FLWR, (
        f"flwr {found} is installed; rootlet {PINNED_FLWR}'s wire is what rootlet.fleet speaks. "
        f'Run: pip install "flwr=={PINNED_FLWR}". To move to {found}: raise the pin in '
        "pyproject.toml and here, then make this file and tests/integration pass."
    )


@pytest.mark.parametrize("name", MESSAGES)
def test_message_agrees_with_flwr(name):
    ours = MESSAGES[name].DESCRIPTOR
    theirs = flwr_descriptors()[name]
    assert ours.full_name == f"{PACKAGE}.{name}" == theirs.full_name
    assert {field.name: facts(field) for field in ours.fields} == {
        field.name: facts(field)
        for field in theirs.fields
        if field.name not in LEFT_OUT.get(name, set())
    }


def test_what_is_left_out_exists_upstream():
    descriptors = flwr_descriptors()
    for name, fields in LEFT_OUT.items():
        assert fields <= set(descriptors[name].fields_by_name), name


def test_every_fleet_route_is_known():
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    fleet = {
        kind.__name__
        for (_, path), kind in PROTOBUF_REQUEST_TYPES.items()
        if path.startswith("/v1/fleet/")
    }
    assert len(fleet) == 12
    assert fleet <= set(MESSAGES)


def test_constants_are_flwrs():
    from flwr.common import constant as common
    from flwr.supercore import constant
    from flwr.supercore.error import ApiErrorCode
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

    from rootlet.fleet import connection, objects, refusals, transport

    assert constant.HEAD_BODY_DIVIDER == b"\0"
    assert constant.HEAD_VALUE_DIVIDER == " "
    assert common.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE == objects.CHUNK_BYTES
    assert common.HEARTBEAT_MIN_INTERVAL == connection.MIN_HEARTBEAT_S
    assert common.HEARTBEAT_MAX_INTERVAL == connection.MAX_HEARTBEAT_S
    assert common.SYSTEM_TIME_TOLERANCE > transport.CLOCK_TOLERANCE_S
    assert common.HEARTBEAT_PATIENCE == 2
    assert PROTOBUF_MEDIA_TYPE == transport.MEDIA_TYPE
    assert common.TIMESTAMP_HEADER == "flwr-timestamp"
    assert constant.FLEET_HTTP_PUBLIC_KEY_HEADER == "flwr-public-key"
    assert constant.FLEET_HTTP_SIGNATURE_HEADER == "flwr-signature"
    for ours, theirs in {
        refusals.PUBLIC_KEY_IN_USE: ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE,
        refusals.REGISTRATION_DISABLED: ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED,
        refusals.ACTIVATION_FAILED: ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED,
        refusals.DEACTIVATION_FAILED: ApiErrorCode.FLEET_NODE_DEACTIVATION_FAILED,
        refusals.UNREGISTRATION_FAILED: ApiErrorCode.FLEET_NODE_UNREGISTRATION_FAILED,
        refusals.RUN_STATUS_NOT_ALLOWED: ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED,
    }.items():
        assert ours == theirs


def test_the_link_loads_no_flwr():
    code = (
        "import sys, rootlet.fleet.session, rootlet.participant\n"
        "heavy = {'flwr', 'torch', 'onnxruntime', 'requests', 'httpx', 'grpc'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_flwr_loads_beside_our_messages():
    from flwr.proto import message_pb2

    assert MESSAGES["Message"] is not message_pb2.Message
    ours = MESSAGES["Message"](metadata=MESSAGES["Metadata"](run_id=5))
    assert message_pb2.Message.FromString(ours.SerializeToString()).metadata.run_id == 5
