"""What requests and replies check when they are made."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rootlet.errors import RecordError

PROTOCOL_VERSION = 1


def require(holds: bool, name: str, value: object, bound: str) -> None:
    """Refuse a value that is out of bounds.

    Raises:
        RecordError: names it, the value and the bound.
    """
    if not holds:
        raise RecordError(f"{name} is {value!r:.100}; it must be {bound}")


def check_adapter(adapter: Mapping[str, np.ndarray]) -> None:
    """Refuse an adapter without arrays, or with one that is not float32.

    Raises:
        RecordError: names the array.
    """
    require(bool(adapter), "adapter", dict(adapter), "at least one array")
    for name, array in adapter.items():
        dtype = getattr(array, "dtype", type(array).__name__)
        require(dtype == np.float32, f"dtype of {name!r:.100}", str(dtype), "float32")


def check_names(what: str, found: Mapping[str, object], expected: set[str]) -> None:
    """Refuse names beyond those expected, and their absence.

    Raises:
        RecordError: names both.
    """
    missing, unknown = expected - set(found), set(found) - expected
    if missing or unknown:
        raise RecordError(
            f"{what}: missing {sorted(missing)}, unknown {str(sorted(unknown))[:200]}; protocol "
            f"{PROTOCOL_VERSION} has {sorted(expected)}"
        )


def check_config(
    records: Mapping[str, Mapping[str, Any]],
    keys: Mapping[str, type],
    optional: Mapping[str, type] | None = None,
) -> dict[str, Any]:
    """Return the checked settings of a request, without the protocol's version.

    Args:
        records: The request's.
        keys: Settings that must be there, and their types.
        optional: Settings that may be there.

    Raises:
        RecordError: Anything missing, unknown, of the wrong type or of another protocol.
    """
    check_names("records", records, {"arrays", "config"})
    config = dict(records["config"])
    version = config.get("protocol")
    if version != PROTOCOL_VERSION:
        raise RecordError(
            f"protocol is {version!r:.40}; this device speaks {PROTOCOL_VERSION}: install the same "
            "rootlet version on both sides"
        )
    keys = {**keys, **{name: kind for name, kind in (optional or {}).items() if name in config}}
    check_names("config", config, set(keys))
    for name, kind in keys.items():
        require(type(config[name]) is kind, name, config[name], f"of type {kind.__name__}")
    del config["protocol"]
    return config
