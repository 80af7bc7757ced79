"""The rows of the table: a rule with its feedback, adapter and precision.

The adapters of all rows hold about the same number of trained values: where A is frozen, B has
rank 32; where A and B learn, the rank is the one that comes nearest to that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rootlet_server.compiler.build import build
from rootlet_server.compiler.config import CompileConfig, LoraConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.bench.problem import Problem
    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.config import AdapterKind

RANK = 32


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row.

    Attributes:
        name: as on the command line and in the store.
        words: as in the table.
        settings: what differs from ``CompileConfig``'s defaults, beside the adapter.
        kind: of adapter; ``lora`` trains A, at the rank of equal size.
        rate_factor: what the task's rates are multiplied by: a head alone takes larger steps than
            adapters below it, and gets as many rates to try as every row.
        study: whether it is there for comparison only: three seeds, and never a default.
        cost_only: whether it has the gradients of another row and only its cost is measured.
    """

    name: str
    words: str
    settings: Mapping[str, Any]
    kind: AdapterKind = "calibrated"
    rate_factor: float = 1.0
    study: bool = False
    cost_only: bool = False

    def rates(self, rates: tuple[float, ...]) -> tuple[float, ...]:
        """The rates that this row tries."""
        return tuple(float(f"{rate * self.rate_factor:.6g}") for rate in rates)

    def config(self, problem: Problem, seed: int) -> CompileConfig:
        """What the compiler is asked for; Adam, and the seed of whatever is drawn."""
        rank = equal_rank(problem) if self.kind == "lora" else RANK
        lora = LoraConfig(rank=rank, kind=self.kind)
        return CompileConfig(
            **{"optimizer": "adam", "seed": seed, "adapter": lora, **self.settings}
        )

    def build(self, problem: Problem, seed: int) -> Built:
        """The step of this row on a problem."""
        return build(problem.model, problem.calibration_x, self.config(problem, seed))


def equal_rank(problem: Problem) -> int:
    """The rank at which A and B together are nearest in size to B alone at rank 32."""
    config = CompileConfig(rule="backprop", adapter=LoraConfig(rank=1, kind="lora"))
    learner = build(problem.model, problem.calibration_x[:8], config).step.learner
    shapes = {site.module: (site.in_features, site.width) for site in learner.sites}.values()
    wanted = sum(out * min(RANK, inputs) for inputs, out in shapes)

    def size(rank: int) -> int:
        return sum(min(rank, inputs) * (inputs + out) for inputs, out in shapes)

    return min(range(1, RANK + 1), key=lambda rank: abs(size(rank) - wanted))


def _dfa(name: str, words: str, *, study: bool = False, **settings: Any) -> Arm:
    return Arm(name=name, words=f"DFA, {words}", settings={"rule": "dfa", **settings}, study=study)


def _backprop(name: str, words: str, kind: AdapterKind = "calibrated", **settings: Any) -> Arm:
    settings = {"rule": "backprop", **settings}
    return Arm(name=name, words=f"backprop, {words}", settings=settings, kind=kind)


# The most important rows come first: that is the order in which they are run, study at the end.
ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="head", words="head only", settings={"rule": "head_only"}, rate_factor=10),
        _backprop("bp", "calibrated A"),
        _dfa("dfa", "calibrated, calibrated A"),
        _backprop("bp-lora", "LoRA (A and B)", "lora"),
        _dfa("dfa-blocks", "through the features, blocks of two",
             feedback="calibrated_features", block_size=2),
        _dfa("dfa-blocks-3", "through the features, blocks of three",
             feedback="calibrated_features", block_size=3),
        _dfa("dfa-features", "calibrated through the features", study=True,
             feedback="calibrated_features"),
        Arm(name="dfa-lora", words="DFA, calibrated, LoRA (A and B)", settings={"rule": "dfa"},
            kind="lora", study=True),
        Arm(name="bp-float32", words="backprop, calibrated A, float32 base",
            settings={"rule": "backprop", "base_dtype": "float32"}, study=True),
        _dfa("dfa-float32", "calibrated, calibrated A, float32 base", study=True,
             base_dtype="float32"),
        Arm(name="bp-checkpointed", words="backprop, calibrated A, checkpointed (MeBP)",
            settings={"rule": "backprop_checkpointed"}, cost_only=True),
        Arm(name="bp-int8", words="backprop, calibrated A, int8 both ways",
            settings={"rule": "backprop", "backward": "int8"}, cost_only=True),
        Arm(name="bp-frozen-a", words="backprop, random frozen A", kind="lora_frozen_a",
            settings={"rule": "backprop"}, study=True),
        _dfa("dfa-positions", "calibrated for each position", study=True,
             feedback_positions="each"),
        _dfa("dfa-auto", "blocks chosen by alignment", study=True, block_size="auto"),
        _dfa("dfa-random", "random", study=True, feedback="random"),
        _dfa("dfa-sign", "sign-concordant", study=True, feedback="sign"),
        _dfa("dfa-broadcast", "broadcast", study=True, feedback="broadcast"),
        _dfa("dfa-drtp", "targets (DRTP)", study=True, feedback="drtp"),
        Arm(name="local-losses", words="local losses", settings={"rule": "local_losses"},
            study=True),
        Arm(name="zeroth-order", words="zeroth order (MeZO)", settings={"rule": "zeroth_order"},
            study=True),
    )
}  # fmt: skip
