"""Which rule a model gets where none is named: what the scoreboard found for its architecture.

``docs/results/learning.md`` is the evidence: for each architecture the cheapest row that is not
certainly behind the best one on any of its tasks. A test holds this table to the committed cells.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from rootlet_server.compiler.attention_columns import score_products
from rootlet_server.compiler.interpret import CONVOLUTIONS

if TYPE_CHECKING:
    from rootlet_server.compiler.config import CompileConfig
    from rootlet_server.compiler.trace import Program

Architecture = Literal["dense", "convolution", "attention"]

BLOCKS = {"rule": "dfa", "feedback": "calibrated_features", "block_size": 3}
BY_ARCHITECTURE: dict[Architecture, dict[str, Any]] = {
    "dense": BLOCKS,
    "convolution": BLOCKS,
    "attention": {"rule": "dfa"},
}


def architecture(program: Program) -> Architecture:
    """``attention`` where there is any, else ``convolution``, else ``dense``."""
    if score_products(program.graph):
        return "attention"
    for node in program.graph.nodes:
        if node.target in CONVOLUTIONS:
            return "convolution"
    return "dense"


def resolved(config: CompileConfig, chosen_for: Architecture | None) -> CompileConfig:
    """The configuration with ``rule="auto"`` replaced: by what an architecture gets, or by dfa."""
    if config.rule != "auto":
        return config
    return replace(
        config, **({"rule": "dfa"} if chosen_for is None else BY_ARCHITECTURE[chosen_for])
    )
