"""Strict JSON: bytes from outside become frozen dataclasses, or are refused.

The refusal names the path of the fault.

Refused: duplicate keys, unknown or missing fields, NaN and infinities, a bool where a number is
due, strings that are not valid Unicode. The schema is the dataclass itself; each class checks its
own values in ``__post_init__``.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class StrictJsonError(ValueError):
    """The bytes are not JSON of the expected shape; callers turn this into their own error."""


def dumps(value: object) -> bytes:
    """The one canonical encoding: sorted keys, indent 1, UTF-8, no NaN, a final newline."""
    text = json.dumps(_plain(value), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def decode(parsed: object, cls: type[T]) -> T:
    """Turns parsed JSON into the dataclass ``cls``.

    Raises:
        StrictJsonError: a field is unknown, missing or of another type.
    """
    return typing.cast("T", _decode(parsed, cls, ""))


def parse(raw: bytes) -> Any:
    """Parses JSON, refusing duplicate keys and non-finite constants."""
    try:
        parsed = json.loads(
            raw.decode(),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        json.dumps(parsed, ensure_ascii=False).encode()  # half a surrogate pair is no Unicode
    except StrictJsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise StrictJsonError(f"not valid JSON in UTF-8: {error}") from error
    return parsed


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise StrictJsonError(f"duplicate key {max(keys, key=keys.count)!r}")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise StrictJsonError(f"the number {digits[:40]} is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise StrictJsonError(f"the constant {name} is not JSON")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _decode(value: Any, hint: Any, path: str) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(value, hint, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(value, inner, path)
    if origin is tuple:
        items = _expect(value, list, path)
        return tuple(_decode(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(items))
    if origin is Mapping:
        entries = _expect(value, dict, path)
        return {key: _decode(item, arguments[1], f"{path}.{key}") for key, item in entries.items()}
    return _decode_scalar(value, hint, path)


def _decode_dataclass(value: Any, cls: type[Any], path: str) -> Any:
    entries = _expect(value, dict, path)
    hints = typing.get_type_hints(cls)
    unknown, missing = sorted(entries.keys() - hints.keys()), sorted(hints.keys() - entries.keys())
    if unknown or missing:
        fault = f"unknown field {unknown[0]!r}" if unknown else f"missing field {missing[0]!r}"
        raise StrictJsonError(f"{path.lstrip('.') or 'the top level'}: {fault}")
    return cls(**{name: _decode(entries[name], hints[name], f"{path}.{name}") for name in hints})


def _decode_scalar(value: Any, hint: type, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise StrictJsonError(f"{path.lstrip('.')}: the number is too large") from error
    checked = _expect(value, hint, path)
    if isinstance(checked, str) and not checked.isprintable():
        raise StrictJsonError(f"{path.lstrip('.')}: holds characters that cannot be printed")
    return checked


def _expect(value: Any, kind: type, path: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        where = path.lstrip(".") or "the top level"
        raise StrictJsonError(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value
