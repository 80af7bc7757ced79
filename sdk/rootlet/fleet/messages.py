"""Flower's Fleet messages, as far as a device needs them, built at import from one table.

The descriptors live in a pool of their own, so that they neither depend on generated code (whose
version is tied to one protobuf release) nor clash with flwr's own where both are loaded.
`tests/sdk/test_fleet_messages.py` holds every field to the descriptors of the pinned flwr.

A field reads `number name type`, with a suffix on the type: `*` repeated, `|` a member of the oneof
`value`. Fields a device never reads are left out: protobuf skips what it does not know.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "flwr.proto"

SCHEMA: dict[str, str] = {
    "Node": "1 node_id uint64",
    "Error": "1 code sint64, 2 reason string",
    "Reconnect": "1 reconnect uint64",
    # -- records: bodies of objects --------------------------------------------------------------
    "DoubleList": "1 vals double*",
    "SintList": "1 vals sint64*",
    "UintList": "1 vals uint64*",
    "BoolList": "1 vals bool*",
    "StringList": "1 vals string*",
    "BytesList": "1 vals bytes*",
    "MetricRecordValue": (
        "1 double double|, 2 sint64 sint64|, 3 uint64 uint64|,"
        "21 double_list DoubleList|, 22 sint_list SintList|, 23 uint_list UintList|"
    ),
    "ConfigRecordValue": (
        "1 double double|, 2 sint64 sint64|, 3 uint64 uint64|, 4 bool bool|, 5 string string|,"
        "6 bytes bytes|, 21 double_list DoubleList|, 22 sint_list SintList|,"
        "23 uint_list UintList|, 24 bool_list BoolList|, 25 string_list StringList|,"
        "26 bytes_list BytesList|"
    ),
    "MetricRecord": "1 items MetricRecord.Item*",
    "MetricRecord.Item": "1 key string, 2 value MetricRecordValue",
    "ConfigRecord": "1 items ConfigRecord.Item*",
    "ConfigRecord.Item": "1 key string, 2 value ConfigRecordValue",
    "RecordDict": "",  # a device sends it empty: the records travel as objects
    # -- messages and objects --------------------------------------------------------------------
    "Metadata": (
        "1 run_id uint64, 2 message_id string, 3 src_node_id uint64, 4 dst_node_id uint64,"
        "5 reply_to_message_id string, 6 group_id string, 7 ttl double, 8 message_type string,"
        "9 created_at double"
    ),
    "Message": "1 metadata Metadata, 2 content RecordDict, 3 error Error",
    "ObjectTree": "1 object_id string, 2 children ObjectTree*",
    "PushObjectRequest": (
        "1 node Node, 2 run_id uint64, 3 object_id string, 4 object_content bytes,"
        "5 session_id string"
    ),
    "PushObjectResponse": "1 stored bool",
    "PullObjectRequest": "1 node Node, 2 run_id uint64, 3 object_id string",
    "PullObjectResponse": "1 object_found bool, 2 object_available bool, 3 object_content bytes",
    "ConfirmMessageReceivedRequest": "1 node Node, 2 run_id uint64, 3 message_object_id string",
    "ConfirmMessageReceivedResponse": "",
    # -- nodes -----------------------------------------------------------------------------------
    "RegisterNodeFleetRequest": "1 public_key bytes",
    "RegisterNodeFleetResponse": "1 node_id uint64",
    "ActivateNodeRequest": "1 public_key bytes, 2 heartbeat_interval double",
    "ActivateNodeResponse": "1 node_id uint64",
    "DeactivateNodeRequest": "1 node_id uint64",
    "DeactivateNodeResponse": "",
    "UnregisterNodeFleetRequest": "1 node_id uint64",
    "UnregisterNodeFleetResponse": "",
    "SendNodeHeartbeatRequest": "1 node Node, 2 heartbeat_interval double",
    "SendNodeHeartbeatResponse": "1 success bool",
    "PullMessagesRequest": "1 node Node, 2 message_ids string*",
    "PullMessagesResponse": (
        "1 reconnect Reconnect, 2 messages_list Message*, 3 message_object_trees ObjectTree*"
    ),
    "PushMessagesRequest": (
        "1 node Node, 2 messages_list Message*, 3 message_object_trees ObjectTree*,"
        "4 clientapp_runtime_list double*"
    ),
    "PushMessagesResponse": (
        "1 reconnect Reconnect, 3 objects_to_push string*, 4 session_id string"
    ),
    # -- runs ------------------------------------------------------------------------------------
    "RunStatus": "1 status string, 2 sub_status string, 3 details string",
    "Run": (
        "1 run_id uint64, 2 fab_id string, 3 fab_version string, 5 fab_hash string,"
        "9 finished_at string, 10 status RunStatus"
    ),
    "GetRunRequest": "1 node Node, 2 run_id uint64",
    "GetRunResponse": "1 run Run",
    "Fab": "1 hash_str string, 2 content bytes",
    "GetFabRequest": "1 node Node, 2 hash_str string, 3 run_id uint64",
    "GetFabResponse": "1 fab Fab",
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("double", "sint64", "uint64", "bool", "string", "bytes")
}


def _add_field(message: Any, text: str) -> None:
    number, name, type_name = text.split()
    suffix = type_name[-1] if type_name[-1] in "*|" else ""
    type_name = type_name.removesuffix(suffix)
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if suffix == "*" else _Field.LABEL_OPTIONAL
    if type_name in _SCALARS:
        field.type = _SCALARS[type_name]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{type_name}"
    if suffix == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name="value")
        field.oneof_index = 0


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="rootlet/fleet.proto", package=PACKAGE, syntax="proto3"
    )
    built: dict[str, Any] = {}
    for name, fields in SCHEMA.items():
        parent, _, own = name.rpartition(".")
        message = built[parent].nested_type.add() if parent else file.message_type.add()
        message.name = own
        built[name] = message
        for text in filter(None, fields.split(",")):
            _add_field(message, text)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in SCHEMA
    }


MESSAGES: dict[str, Any] = _build()
"""Message class by name."""
