"""The learning rate over the steps of a fit: warm-up, then decay.

With S steps, W = ceil(warmup S) of them warm-up, and step i counted from 0, the rate is the given
one times

    (i + 1) / (W + 1)                            i < W
    1                                            constant
    1 - j / n                                    linear      j = i - W, n = S - W
    (1 + cos(pi j / n)) / 2                      cosine (Loshchilov & Hutter 2017, no restarts)

so it is never 0, and a pure function of the step: a resumed fit goes on with the same bits.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Decay = Literal["constant", "linear", "cosine"]
DECAYS: tuple[str, ...] = get_args(Decay)
LARGEST_WARMUP = 0.5


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """How the learning rate rises and falls.

    Attributes:
        decay: ``constant``, ``linear`` or ``cosine``.
        warmup: share of the steps over which the rate rises, 0 to 0.5.

    Raises:
        ValueError: a value outside its bounds.
    """

    decay: str = "linear"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay {self.decay!r}: must be one of {', '.join(DECAYS)}")
        if not 0 <= self.warmup <= LARGEST_WARMUP:
            raise ValueError(f"warmup {self.warmup}: must lie in 0..{LARGEST_WARMUP}")

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at ``step`` (from 0) of ``steps``, in (0, 1].

        Raises:
            ValueError: not ``0 <= step < steps``.
        """
        if not 0 <= step < steps:
            raise ValueError(f"step {step}: must lie in 0..{steps - 1}")
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / (steps - rising)
        if self.decay == "linear":
            return 1 - done
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        return 1.0


CONSTANT = RateSchedule(decay="constant", warmup=0.0)
ROUND = RateSchedule(decay="constant", warmup=0.1)
"""Within a round of a federation: the server names the rate, and decays it over the rounds."""
