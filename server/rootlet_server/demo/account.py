"""What the demo was asked, what came of it, and the words in which it says so."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rootlet_runtime.bundle import Bundle
from rootlet_runtime.signing import load_public_key
from rootlet_server.cli_serve import DEFAULT_PORT
from rootlet_server.federation.console import kilobytes

if TYPE_CHECKING:
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
    """Print a plain account of the run, the verdict on its claim, and commands to try."""
    publisher = outcome.folder / "publisher.pub.pem"
    with Bundle.load(result.bundle, trusted_keys=[load_public_key(publisher)]) as bundle:
        learned = sum(spec.elements for spec in bundle.manifest.adapter)
    down = kilobytes(sum(r.bytes_down for r in result.rounds))
    up = kilobytes(sum(r.bytes_up for r in result.rounds))
    energy_mj = 1e3 * sum(r.energy_estimated_j for r in result.rounds)
    angles = [device.angle for device in data.devices]
    averaged = "once" if len(result.rounds) == 1 else f"{len(result.rounds)} times"
    rule = "one broadcast of the error (DFA)" if config.rule == "dfa" else "backprop"
    console.print(
        f"\n[bold]What happened[/]\n"
        f"The base learned upright digits and gets {upright:.0%} of new ones right. "
        f"{config.devices} devices hold digits turned by {angles[0]:.0f} to {angles[-1]:.0f} "
        f"degrees, each by its own angle; of those it gets {outcome.before:.0%}. "
        f"Each device, a process without torch, trained {learned:,} adapter values on its own "
        f"digits by {rule}, with the base in int8 on ONNX Runtime, and sent the adapter alone: "
        f"{down} came down and {up} went up in all, and no digit among them. "
        f"The server averaged {averaged}. "
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
    for purpose, command in _next_commands(config, outcome, result.bundle, publisher):
        console.print(f"  [dim]# {purpose}[/]", highlight=False, soft_wrap=True)
        line = shlex.join([*_program(), *command])
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _next_commands(
    config: DemoConfig, outcome: Outcome, bundle: Path, publisher: Path
) -> tuple[tuple[str, list[str]], ...]:
    """(what for, arguments of `rootlet`) for each command to try."""
    other = "backprop" if config.rule == "dfa" else "dfa"
    trusted = [str(bundle), "--trusted-key", str(publisher)]
    signing_key = str(outcome.folder / "publisher.pem")
    data = str(outcome.folder / "device-1" / "train.npz")
    return (
        ("what the improved bundle holds", ["bundle", "show", *trusted]),
        ("the same with the other rule", ["demo", "--rule", other]),
        ("a server that goes on from the improved bundle, without TLS on this machine only",
         ["serve", "--bundle", *trusted, "--signing-key", signing_key,
          "--rounds", "3", "--min-devices", "1"]),
        ("in another shell, a device for it",
         ["device", "--superlink", f"127.0.0.1:{DEFAULT_PORT}", "--bundle", *trusted,
          "--data", data, "--ignore-conditions", "--max-rounds", "3"]),
    )  # fmt: skip


def _program() -> list[str]:
    """How a shell starts this program again: by name where that finds it, else as it was called."""
    called = Path(sys.argv[0])
    if called.suffix == ".py":
        return [sys.executable, "-m", "rootlet_server.cli"]
    found = shutil.which(called.name)
    by_name = found is not None and called.exists() and called.samefile(found)
    return [called.name if by_name else str(called)]
