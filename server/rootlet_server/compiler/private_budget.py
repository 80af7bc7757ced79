"""Advice under a small privacy budget: what learns best for a given epsilon, by the scoreboard.

The figures are accuracies on rotated digits with 2,000 private examples, delta 1e-5, mean of four
seeds, and this is the one place of the code that holds any; ``rootlet bench learning`` measures
their like (``docs/results/learning.md``). The length of the noise grows with the root of the number
of parameters that learn, so the order of the methods changes with the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rootlet_server.compiler.config import CompileConfig

# (rule, whether A learns) -> accuracy at each epsilon.
ACCURACY: dict[tuple[str, bool], dict[float, float]] = {
    ("head_only", False): {8.0: 63.1, 4.0: 62.0, 1.0: 55.5},
    ("backprop", True): {8.0: 75.7, 4.0: 70.5, 1.0: 58.1},
    ("backprop", False): {8.0: 81.7, 4.0: 81.2, 1.0: 68.7},
    ("dfa", True): {8.0: 73.8, 4.0: 67.9, 1.0: 50.3},
    ("dfa", False): {8.0: 76.0, 4.0: 76.0, 1.0: 60.2},
}
WORTH_SAYING = 2.0  # points; less is within two standard errors of the test set
SETTINGS = {
    ("head_only", False): "rule='head_only'",
    ("backprop", False): "rule='backprop' with LoraConfig(kind='calibrated')",
}


def private_advice(config: CompileConfig) -> tuple[str, ...]:
    """What did better at the nearest measured epsilon that is no larger; empty if nothing did.

    A target below every measured one takes the smallest.
    """
    privacy = config.privacy
    if privacy is None or privacy.target_epsilon is None:
        return ()
    chosen = (config.rule, config.rule != "head_only" and config.adapter.trains_a)
    other_credit = config.rule == "dfa" and config.block_size != 1
    if chosen not in ACCURACY or config.adapter.kind == "lora_frozen_a" or other_credit:
        return ()  # not measured
    measured = sorted(ACCURACY[chosen])
    epsilon = max((e for e in measured if e <= privacy.target_epsilon), default=measured[0])
    own = ACCURACY[chosen][epsilon]
    better = {
        settings: ACCURACY[method][epsilon]
        for method, settings in SETTINGS.items()
        if ACCURACY[method][epsilon] >= own + WORTH_SAYING
    }
    if not better:
        return ()
    best = max(better, key=lambda settings: better[settings])
    return (
        f"target_epsilon={privacy.target_epsilon:g} with rule={config.rule!r}: at epsilon "
        f"{epsilon:g} the scoreboard has {own:.1f} % for it and {better[best]:.1f} % for {best} "
        f"(docs/results/learning.md); use that, or state a larger budget",
    )
