"""What a device may spend on training: a budget for a round and for a day.

Counted is the energy of training, with the guard's evaluations, latents and a teacher's outputs;
and, in the day's account only, what the quality gate predicts. It is measured where the device has
a meter, else estimated from the work (`rootlet_runtime.meter`, `rootlet_runtime.energy`). The
radio, and measuring an adapter before and after a round, are not counted.
"""

import math
from dataclasses import dataclass

from rootlet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EnergyBudget:
    """The most that training may spend.

    Attributes:
        joules_per_round: In one round, or one local training; one that does not fit is refused
            before it starts where the work tells its energy, and stopped between two steps else.
        joules_per_day: In one local calendar day; training stops between two steps and goes on
            the next day.

    Raises:
        ConfigError: A value is not positive.
    """

    joules_per_round: float | None = None
    joules_per_day: float | None = None

    def __post_init__(self) -> None:
        for name in ("joules_per_round", "joules_per_day"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"{name} is {value}: give a positive number of joules, or None for no limit"
                )


@dataclass(frozen=True, kw_only=True)
class EnergySpent:
    """Joules of one day; ``method`` is `measured`, or `estimated` where any part was."""

    joules: float = 0.0
    method: str = "measured"
