"""The learning rate over a run, as a share of its peak: a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rootlet_server.training.config import ScheduleConfig


def rate_share(config: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the peak at a step.

    With W = ceil(warmup * steps): ``(step + 1) / W`` while step < W (half a cosine under
    ``one_cycle``), and then, with t = (step - W) / (steps - W) and f = final,

        constant 1      linear f + (1 - f)(1 - t)      cosine, one_cycle f + (1 - f)(1 + cos pi t)/2

    Args:
        config: warm-up and decay.
        step: from 0.
        steps: of the whole run.
    """
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        share = (step + 1) / warm
        return (1 - math.cos(math.pi * share)) / 2 if config.decay == "one_cycle" else share
    if config.decay == "constant":
        return 1.0
    t = (step - warm) / max(steps - warm, 1)
    falling = 1 - t if config.decay == "linear" else (1 + math.cos(math.pi * t)) / 2
    return config.final + (1 - config.final) * falling
