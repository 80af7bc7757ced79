"""The demo from beginning to end; every figure it prints comes from the run itself."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from rootlet_runtime.signing import generate_keypair, load_public_key, save_keypair
from rootlet_server.compiler import compile_bundle
from rootlet_server.demo.account import CLAIMED_RISE, DemoConfig, Outcome, tell
from rootlet_server.demo.base import COMPILE, accuracy, train_base
from rootlet_server.demo.board import Board
from rootlet_server.demo.data import DemoData, load_demo_data
from rootlet_server.demo.fleet import DemoFleet
from rootlet_server.demo.plot import plot_accuracy
from rootlet_server.federation.config import ServeConfig
from rootlet_server.federation.events import Event, Listening, Reply
from rootlet_server.federation.serving import serve

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


def run_demo(config: DemoConfig, console: Console) -> Outcome:
    """Train a base, compile it, federate it over real processes, and check the claim."""
    start = time.monotonic()
    folder = config.out / datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")
    folder.mkdir(parents=True)
    board = Board(console)
    data = load_demo_data(config.devices, np.random.default_rng(config.seed))
    bundle, publisher, upright = _bundle(config, data, folder, board)
    with DemoFleet(folder, data.devices, config.rounds) as fleet:
        rounds = "1 round" if config.rounds == 1 else f"{config.rounds} rounds"
        name = f"{rounds} over a SuperLink with TLS and node authentication"
        followed = _Followed()
        with board.rounds(name) as show:

            def take(event: Event) -> None:
                if isinstance(event, Listening):
                    fleet.start(bundle, publisher, event)
                followed.take(event)
                show(event)

            result = serve(_serve_config(config, folder, bundle, publisher, fleet), take)
    plot = folder / "accuracy.png"
    plot_accuracy(plot, followed.curves, CLAIMED_RISE)
    outcome = Outcome(
        before=result.rounds[0].means["accuracy_received"],
        after=result.evaluated.means["accuracy_received"],
        folder=folder,
    )
    tell(console, config, data, result, outcome, upright=upright, seconds=time.monotonic() - start)
    return outcome


def _bundle(
    config: DemoConfig, data: DemoData, folder: Path, board: Board
) -> tuple[Path, Path, float]:
    """(bundle, publisher's public key, the base's accuracy on upright digits)."""
    with board.phase("train the base by backprop on upright digits") as say:
        model = train_base(
            data.source, seed=config.seed, progress=lambda n, of: say(f"epoch {n} of {of}")
        )
        upright = accuracy(model, data.source_test)
    key, _ = generate_keypair()
    _, publisher = save_keypair(folder / "publisher", key)
    path = folder / "digits-1.rootlet"
    with board.phase("compile it: int8 base, calibrated adapters, signed bundle") as say:
        compile_bundle(
            model,
            calibration_x=data.source.x[:128],
            config=replace(COMPILE, rule=config.rule),
            name="digits",
            version=1,
            signing_key=key,
            out=path,
            progress=say,
        )
    return path, publisher, upright


def _serve_config(
    config: DemoConfig, folder: Path, bundle: Path, publisher: Path, fleet: DemoFleet
) -> ServeConfig:
    return ServeConfig(
        bundle=bundle,
        trusted_keys=(load_public_key(publisher),),
        signing_key=folder / "publisher.pem",
        state_dir=folder / "server",
        out=folder / "digits-2.rootlet",
        rounds=config.rounds,
        min_devices=config.devices,
        tls="auto",
        node_keys=fleet.node_keys,
        wait_s=60,
        deadline_s=60,
    )


class _Followed:
    """Each device's accuracy by the number of rounds behind it, from its own replies."""

    def __init__(self) -> None:
        self.curves: dict[int, list[tuple[int, float]]] = {}

    def take(self, event: Event) -> None:
        if isinstance(event, Reply):
            behind = event.round - (event.phase == "train")
            point = (behind, event.metrics["accuracy_received"])
            self.curves.setdefault(event.node, []).append(point)
