"""Records: the named values inside a Flower message, as plain dictionaries that know their kind.

A message carries `Records`, a dictionary of record name to record. A record is a dictionary whose
class says how it travels: `ArrayRecord` as `.npy` objects, `MetricRecord` and `ConfigRecord` as
protobuf bodies. Equality, iteration and printing are those of `dict`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from rootlet.errors import ProtocolError, RecordError
from rootlet.fleet.messages import MESSAGES

MetricValue = int | float | list[int] | list[float]
ConfigValue = bool | int | float | str | bytes | list[Any]

INT64_MIN, INT64_MAX, UINT64_MAX = -(2**63), 2**63 - 1, 2**64 - 1


class ArrayRecord(dict[str, np.ndarray]):
    """Named arrays."""


class MetricRecord(dict[str, MetricValue]):
    """Named numbers, or lists of numbers of one type."""


class ConfigRecord(dict[str, ConfigValue]):
    """Named settings: bool, int, float, str or bytes, or lists of one of these types."""


Record = ArrayRecord | MetricRecord | ConfigRecord
Records = dict[str, Record]

# Field of the oneof by type of value.
_FIELDS = {bool: "bool", int: "sint64", float: "double", str: "string", bytes: "bytes"}
_LIST_FIELDS = {
    **{"bool": "bool_list", "sint64": "sint_list", "uint64": "uint_list"},
    **{"double": "double_list", "string": "string_list", "bytes": "bytes_list"},
}


def _field_of(name: str, value: object) -> str:
    """Return the oneof's field for a value; an empty list travels as a list of doubles."""
    items: list[Any] = value if isinstance(value, list) else [value]
    kinds = {type(item) for item in items} or {float}
    field = _FIELDS.get(kinds.pop(), "") if len(kinds) == 1 else ""
    if field == "sint64" and not all(INT64_MIN <= item <= INT64_MAX for item in items):
        field = "uint64" if all(0 <= item <= UINT64_MAX for item in items) else ""
    if not field:
        raise RecordError(
            f"value of {name!r} cannot travel: {value!r:.80}; use bool, int in 64 bits, float, "
            "str or bytes, or a list of one of these types"
        )
    return _LIST_FIELDS[field] if isinstance(value, list) else field


def encode_values(record: MetricRecord | ConfigRecord) -> bytes:
    """Return the protobuf body of a metric or config record.

    Raises:
        RecordError: A value that the record's kind cannot hold.
    """
    kind = type(record).__name__
    body = MESSAGES[kind]()
    allowed = {field.name for field in MESSAGES[f"{kind}Value"].DESCRIPTOR.fields}
    for name, value in record.items():
        field = _field_of(name, value)
        if field not in allowed:
            raise RecordError(f"a {kind} holds numbers only; {name!r} is {value!r:.80}")
        target = body.items.add(key=name).value
        if isinstance(value, list):
            getattr(target, field).vals.extend(value)
            getattr(target, field).SetInParent()  # an empty list is a value too
        else:
            setattr(target, field, value)
    return bytes(body.SerializeToString(deterministic=True))


def _decode_values(kind: str, content: bytes) -> dict[str, Any]:
    body = MESSAGES[kind]()
    try:
        body.ParseFromString(content)
    except DecodeError as error:
        raise ProtocolError(f"a {kind} of {len(content)} bytes is not protobuf: {error}") from error
    values: dict[str, Any] = {}
    for item in body.items:
        field = item.value.WhichOneof("value")
        if field is None or item.key in values:
            raise ProtocolError(f"a {kind} holds {item.key!r:.80} without a value, or twice")
        value = getattr(item.value, field)
        values[item.key] = list(value.vals) if field.endswith("_list") else value
    return values


def decode_metrics(content: bytes) -> MetricRecord:
    """Return the metric record with this protobuf body.

    Raises:
        ProtocolError: Not protobuf, a name twice or a name without a value.
    """
    return MetricRecord(_decode_values("MetricRecord", content))


def decode_config(content: bytes) -> ConfigRecord:
    """Return the config record with this protobuf body.

    Raises:
        ProtocolError: Not protobuf, a name twice or a name without a value.
    """
    return ConfigRecord(_decode_values("ConfigRecord", content))


VALUE_DECODERS: Mapping[str, Callable[[bytes], MetricRecord | ConfigRecord]] = {
    "MetricRecord": decode_metrics,
    "ConfigRecord": decode_config,
}
"""Decoder by object type, for the records whose body holds their values."""
