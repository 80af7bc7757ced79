"""Advice under a small privacy budget: what learns best for a given epsilon, by the scoreboard.

The figures are accuracies on handwriting with 2,000 private examples, delta 1e-5, mean of three
seeds, as ``rootlet bench learning`` printed them (``docs/results/learning.md``; a test holds them
to it). The length of the noise grows with the root of the number of parameters that learn, so the
order of the methods changes with the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.defaults import BY_ARCHITECTURE

if TYPE_CHECKING:
    from rootlet_server.compiler.config import CompileConfig

# The scoreboard's name of a row -> accuracy at each epsilon.
ACCURACY: dict[str, dict[float, float]] = {
    "head": {8.0: 70.6, 4.0: 66.1, 1.0: 47.0},
    "bp-lora": {8.0: 74.6, 4.0: 71.0, 1.0: 50.0},
    "bp": {8.0: 80.6, 4.0: 76.7, 1.0: 60.4},
    "dfa": {8.0: 70.0, 4.0: 64.0, 1.0: 47.9},
    "dfa-blocks-3": {8.0: 79.6, 4.0: 75.8, 1.0: 58.6},
}
WORTH_SAYING = 2.0  # points; less is within two standard errors of the test set
SETTINGS = {
    "head": "rule='head_only'",
    "bp": "rule='backprop' with LoraConfig(kind='calibrated')",
}


def measured_row(config: CompileConfig) -> str | None:
    """The scoreboard's row of a configuration; None where it has none."""
    kind, default = config.adapter.kind, BY_ARCHITECTURE["convolution"]
    if config.rule == "head_only":
        return "head"
    if config.rule == "backprop":
        return {"calibrated": "bp", "lora": "bp-lora"}.get(kind)
    if kind != "calibrated":
        return None
    if config.rule == "auto" or all(getattr(config, k) == v for k, v in default.items()):
        return "dfa-blocks-3"
    plain = (config.rule, config.block_size, config.feedback) == ("dfa", 1, "calibrated")
    return "dfa" if plain else None


def private_advice(config: CompileConfig) -> tuple[str, ...]:
    """What did better at the nearest measured epsilon that is no larger; empty if nothing did.

    A target below every measured one takes the smallest.
    """
    privacy, row = config.privacy, measured_row(config)
    if privacy is None or privacy.target_epsilon is None or row is None:
        return ()
    measured = sorted(ACCURACY[row])
    epsilon = max((e for e in measured if e <= privacy.target_epsilon), default=measured[0])
    own = ACCURACY[row][epsilon]
    better = {
        settings: ACCURACY[other][epsilon]
        for other, settings in SETTINGS.items()
        if ACCURACY[other][epsilon] >= own + WORTH_SAYING
    }
    if not better:
        return ()
    best = max(better, key=lambda settings: better[settings])
    return (
        f"target_epsilon={privacy.target_epsilon:g} with rule={config.rule!r}: at epsilon "
        f"{epsilon:g} the scoreboard has {own:.1f} % for it and {better[best]:.1f} % for {best} "
        f"(handwriting, docs/results/learning.md); use that, or state a larger budget",
    )
