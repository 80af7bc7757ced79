"""The demo's devices: one process each, with the arguments a person would give in a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from rootlet.fleet.keys import NodeKey
from rootlet_server.federation.process import ChildProcess

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rootlet_server.demo.data import DeviceData
    from rootlet_server.federation.events import Listening

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class DemoFleet:
    """Writes each device's folder (examples, node key), starts the devices and stops them.

    Args:
        folder: holds one folder a device, and ``node-keys`` with the public keys.
        devices: what each device holds.
        rounds: after how many each device leaves by itself.
    """

    def __init__(self, folder: Path, devices: tuple[DeviceData, ...], rounds: int) -> None:
        self._rounds = rounds
        self.node_keys = folder / "node-keys"
        self._processes: list[ChildProcess] = []
        self._homes = [folder / f"device-{number}" for number in range(1, len(devices) + 1)]
        self.node_keys.mkdir(parents=True)
        for home, device in zip(self._homes, devices, strict=True):
            home.mkdir()
            np.savez(home / "train.npz", x=device.train.x, y=device.train.y)
            np.savez(home / "held-out.npz", x=device.held_out.x, y=device.held_out.y)
            key = NodeKey.generate()
            key.save(home / "node-key")
            (self.node_keys / f"{home.name}.pub").write_text(key.public_openssh + "\n")

    def commands(self, bundle: Path, publisher: Path, listening: Listening) -> list[list[str]]:
        """``rootlet device …`` for every device, with the paths of this run."""
        trust = (
            ["--root-certificate", listening.root_certificate] if listening.root_certificate else []
        )
        return [
            [
                "device", "--superlink", listening.address, *trust,
                "--bundle", str(bundle), "--trusted-key", str(publisher),
                "--data", str(home / "train.npz"), "--holdout", str(home / "held-out.npz"),
                "--node-key", str(home / "node-key"), "--state-dir", str(home / "state"),
                "--ignore-conditions", "--max-rounds", str(self._rounds),
            ]
            for home in self._homes
        ]  # fmt: skip

    def start(self, bundle: Path, publisher: Path, listening: Listening) -> None:
        """Start every device."""
        commands = self.commands(bundle, publisher, listening)
        for home, command in zip(self._homes, commands, strict=True):
            self._processes.append(
                ChildProcess(
                    "rootlet_server.demo.device",
                    command,
                    log_path=home / "log.txt",
                    environment=ONE_THREAD,
                )
            )

    def __enter__(self) -> Self:
        """Nothing is started yet: the server's address is not known."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every device: asked to leave, or at once where there is no server left to tell."""
        for process in self._processes:
            if error is None:
                process.stop()
            else:
                process.kill()
