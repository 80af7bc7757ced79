"""Options of strategies as an operator writes them: text, checked by name, type and bounds."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from rootlet_server.errors import ServeConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

S = TypeVar("S")


def require(holds: bool, name: str, value: object, bound: str) -> None:
    """Refuse a value out of bounds.

    Raises:
        ServeConfigError: names it, the value and the bound.
    """
    if not holds:
        raise ServeConfigError(f"the strategy's {name} is {value}; it must be {bound}")


def positive(name: str, value: float) -> None:
    """Refuse what is not positive and finite."""
    require(math.isfinite(value) and value > 0, name, value, "positive and finite")


def decay(name: str, value: float) -> None:
    """Refuse what is not in [0, 1)."""
    require(0 <= value < 1, name, value, "at least 0 and below 1")


def at_least(name: str, value: int, least: int) -> None:
    """Refuse what is below ``least``."""
    require(value >= least, name, value, f"at least {least}")


def read(kind: type[S], strategy: str, options: Mapping[str, Any]) -> S:
    """Settings from an operator's options.

    Args:
        kind: a frozen dataclass of int, float and str fields, each with a default.
        strategy: its name, for messages.
        options: values by name, as text or as numbers.

    Raises:
        ServeConfigError: an option that the strategy does not have, of another type, or out of its
            bounds; names those that it has.
    """
    known = {item.name: item.default for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        has = ", ".join(f"{name} ({default})" for name, default in known.items()) or "no options"
        raise ServeConfigError(f"strategy {strategy} has no option {unknown[0]!r}; it has {has}")
    values = {name: _value(name, value, type(known[name])) for name, value in options.items()}
    return kind(**values)


def _value(name: str, value: object, kind: type) -> object:
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError(value)
        return kind(value)
    except (TypeError, ValueError):
        raise ServeConfigError(
            f"the strategy's {name} is {value!r:.80}; it must be of type {kind.__name__}"
        ) from None
