"""What a setting must be: one of some words, a whole number, a number within bounds."""

from __future__ import annotations

import math
from typing import get_args

from rootlet_server.training.errors import FullTrainingConfigError


def one_of(name: str, value: object, choices: object) -> None:
    """A value must be one of a ``Literal``'s.

    Raises:
        FullTrainingConfigError: it is not.
    """
    if value not in get_args(choices):
        allowed = ", ".join(map(repr, get_args(choices)))
        raise FullTrainingConfigError(f"{name}={value!r} is not one of {allowed}.")


def whole(name: str, value: object, least: int = 1) -> None:
    """A value must be a whole number, and no truth value.

    Raises:
        FullTrainingConfigError: it is not, or is below ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FullTrainingConfigError(
            f"{name}={value!r} must be a whole number of at least {least}."
        )


def within(name: str, value: float, low: float, high: float, remedy: str = "") -> None:
    """A value must be a finite number from ``low`` to ``high``.

    Raises:
        FullTrainingConfigError: it is not.
    """
    if not (math.isfinite(value) and low <= value <= high):
        raise FullTrainingConfigError(
            f"{name}={value!r} must lie in {low:g}..{high:g}. {remedy}".rstrip()
        )
