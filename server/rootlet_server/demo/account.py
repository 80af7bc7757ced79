"""What the demo was asked, what came of it, and the words in which it says so."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rootlet_runtime.bundle import Bundle
from rootlet_runtime.signing import load_public_key

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from rootlet_server.demo.data import DemoData
    from rootlet_server.federation.serving import ServeResult

CLAIMED_RISE = 0.4
"""By how much, as a share of right answers, the demo claims that federation lifts the mean."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What to run.

    Attributes:
        out: folder that gets a new folder for this run.
        devices: how many device processes.
        rounds: rounds of federation.
        rule: ``dfa``, or ``backprop`` as the control.
        seed: deals the data and starts the base.
    """

    out: Path
    devices: int = 8
    rounds: int = 10
    rule: Literal["dfa", "backprop"] = "dfa"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Mean accuracy on the devices' held-out digits before and after, and where things are."""

    before: float
    after: float
    folder: Path

    @property
    def holds(self) -> bool:
        """Whether the claim held."""
        return self.after - self.before >= CLAIMED_RISE


def tell(
    console: Console,
    config: DemoConfig,
    data: DemoData,
    result: ServeResult,
    outcome: Outcome,
    *,
    upright: float,
    seconds: float,
) -> None:
    """Print a plain account of the run, the verdict on its claim, and three commands to try."""
    publisher = outcome.folder / "publisher.pub.pem"
    with Bundle.load(result.bundle, trusted_keys=[load_public_key(publisher)]) as bundle:
        learned = sum(spec.elements for spec in bundle.manifest.adapter)
    down = sum(r.bytes_down for r in result.rounds) / 1e6
    up = sum(r.bytes_up for r in result.rounds) / 1e6
    energy_mj = 1e3 * sum(r.energy_estimated_j for r in result.rounds)
    angles = [device.angle for device in data.devices]
    rule = "one broadcast of the error (DFA)" if config.rule == "dfa" else "backprop"
    console.print(
        f"\n[bold]What happened[/]\n"
        f"The base learned upright digits and gets {upright:.0%} of new ones right. "
        f"{config.devices} devices hold digits turned by {angles[0]:.0f} to {angles[-1]:.0f} "
        f"degrees, each by its own angle; of those it gets {outcome.before:.0%}. "
        f"Each device, a process without torch, trained {learned:,} adapter values on its own "
        f"digits by {rule}, with the base in int8 on ONNX Runtime, and sent the adapter alone: "
        f"{down:.1f} MB came down and {up:.1f} MB went up in all, and no digit among them. "
        f"The server averaged {len(result.rounds)} times. "
        f"Now the devices get {outcome.after:.0%} of their held-out digits right.\n"
        f"Training took about {energy_mj:.1f} mJ on all devices together: "
        "[bold]an estimate[/] from counted operations; no meter was read.\n",
        highlight=False,
    )
    rise = 100 * (outcome.after - outcome.before)
    verdict = "[green]holds[/]" if outcome.holds else "[red]does not hold[/]"
    console.print(
        f"Claim: accuracy rises by at least {100 * CLAIMED_RISE:.0f} points. "
        f"It rose by {rise:.0f}, so it {verdict}. Everything took {seconds:.0f} s.\n"
        f"Plot: {outcome.folder / 'accuracy.png'}\nImproved bundle: {result.bundle}\n",
        highlight=False,
        soft_wrap=True,
    )
    console.print("[bold]Try next[/]", highlight=False)
    for command in _next_commands(config, result, publisher):
        console.print("  " + shlex.join(command), highlight=False, soft_wrap=True)


def _next_commands(
    config: DemoConfig, result: ServeResult, publisher: Path
) -> tuple[list[str], ...]:
    other = "backprop" if config.rule == "dfa" else "dfa"
    return (
        ["rootlet", "bundle", "show", str(result.bundle), "--trusted-key", str(publisher)],
        ["rootlet", "demo", "--rule", other],
        ["rootlet", "serve", "--bundle", str(result.bundle), "--trusted-key", str(publisher),
         "--signing-key", str(publisher.parent / "publisher.pem"), "--rounds", "3"],
    )  # fmt: skip
