"""What a round costs beyond the training itself, with ten devices and a small adapter.

    python tests/benchmarks/bench_round_overhead.py [--rounds 10] [--stock-rounds 4]

Two arms over a real SuperLink each, with the same ten devices (threads of one process, each with
the SDK's own session, "training" for a fixed time):

* rootlet: the SuperLink and the ServerApp that `rootlet serve` starts;
* Flower: the stock `flower-superlink`, and the stock loop, `FedAvg.start`, without its evaluation.

Overhead = the round's wall time - the time that a device trains.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.envelope import Answer
from rootlet.fleet.session import FleetSession
from rootlet.protocol import TrainReply
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.control import ControlLink
from rootlet_server.federation.events import EventReader, RoundFinished, RunFinished
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.process import ChildProcess
from rootlet_server.federation.superlink import SuperLink, SuperLinkConfig

DEVICES = 10
TRAIN_S = 0.5
MANIFEST = "0" * 64
PORT = 9461


def adapter() -> dict[str, np.ndarray]:
    """Two sites of rank 32 and a head: 4 tensors, 9482 numbers, 38 kB."""
    rng = np.random.default_rng(0)
    shapes = {"a.lora_B": (128, 32), "b.lora_B": (128, 32), "head.weight": (10, 128)}
    shapes |= {"head.bias": (10,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class Sleeper:
    """A device whose training is a nap."""

    def answer(self, request, *, should_stop):
        """Answer a `train` request after `TRAIN_S` seconds."""
        time.sleep(TRAIN_S)
        received = {name: np.asarray(array) for name, array in request.records["arrays"].items()}
        reply = TrainReply(
            adapter={name: array + np.float32(1) for name, array in received.items()},
            metric="accuracy",
            num_examples=100,
            loss=1.0,
            received=0.5,
            trained=0.5,
            train_s=TRAIN_S,
            energy_estimated_j=0.0,
            bytes_down=request.n_bytes,
            bytes_up=0,
        )
        return Answer(reply.to_records())


def run_devices(address: str) -> None:
    """Take part with ten devices until the process is stopped."""
    sessions = [
        FleetSession(FleetConnection(f"http://{address}"), Sleeper()) for _ in range(DEVICES)
    ]
    for session in sessions:
        threading.Thread(target=session.run, args=(threading.Event(),), daemon=True).start()
    signal.pause()


@contextmanager
def devices_of(address: str) -> Iterator[None]:
    """The devices, in a process of their own."""
    with subprocess.Popen([sys.executable, __file__, "--devices-of", address]) as process:
        try:
            yield
        finally:
            process.kill()


def rootlet_rounds(folder: Path, rounds: int) -> list[float]:
    """Overhead of each round of `rootlet serve`'s own machinery, in seconds."""
    plan = FederationPlan(
        bundle="bench",
        bundle_version=1,
        manifest_sha256=MANIFEST,
        task="classification",
        rounds=rounds,
        min_devices=DEVICES,
        cohort_size=None,
        epochs=1,
        batch_size=8,
        learning_rate=0.1,
        deadline_s=60.0,
        wait_s=60.0,
        max_examples=1000,
        checkpoint_path=folder / "federation.sqlite3",
        events_path=folder / "events.jsonl",
        bundle_path=folder,
        trusted_keys=(),
    )
    RoundCheckpoint(manifest_sha256=MANIFEST, round=0, adapter=adapter()).save(plan.checkpoint_path)
    plan.save(folder / "plan.json")
    link = SuperLink(SuperLinkConfig(state_dir=folder, port=PORT))
    runner = ChildProcess(
        "rootlet_server.federation.serverapp_main",
        ["--runtime-api-address", link.address, "--insecure"],
        log_path=folder / "serverapp.log",
        environment=link.environment,
    )
    overheads: list[float] = []
    with runner, link:
        control = ControlLink(link.address, root_certificate=None, task_secret=link.task_secret)
        with control, devices_of(link.address):
            control.submit(folder / "plan.json")
            runner.send_line(control.take_task())
            reader, ended = EventReader(plan.events_path), False
            while not ended:
                time.sleep(0.1)
                for event in reader.read():
                    ended = ended or isinstance(event, RunFinished)
                    if isinstance(event, RoundFinished):
                        assert event.devices == DEVICES
                        overheads.append(event.seconds - TRAIN_S)
                assert ended or runner.returncode is None, runner.log_tail()
    return overheads


def flower_rounds(folder: Path, rounds: int) -> list[float]:
    """Overhead of each round of Flower's stock loop on a stock SuperLink, in seconds."""
    address, secret = f"127.0.0.1:{PORT + 1}", os.urandom(32)
    (folder / "secret").write_bytes(secret)
    command = Path(sys.executable).with_name("flower-superlink")
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    superlink = subprocess.Popen(
        [
            *(command, "--insecure", "--host", "127.0.0.1", "--port", str(PORT + 1)),
            *("--isolation", "process", "--superexec-auth-secret-file", folder / "secret"),
        ],
        env={**os.environ, **quiet, "FLWR_HOME": str(folder / "flower")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(8)
        with devices_of(address):
            return _stock_loop(address, secret, rounds)
    finally:
        superlink.kill()
        superlink.wait()


def _stock_loop(address: str, secret: bytes, rounds: int) -> list[float]:
    with ControlLink(address, root_certificate=None, task_secret=secret) as control:
        control.submit(Path("unused"))
        grid = HttpGrid(address, insecure=True, token=control.take_task())
    task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
    TaskIdentity.node_id = task.context.node_id
    grid.set_run(run_from_proto(task.run))
    while len(list(grid.get_node_ids())) < DEVICES:
        time.sleep(0.2)
    ends: list[float] = []
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=DEVICES, min_available_nodes=DEVICES)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(array) for name, array in adapter().items()}),
        num_rounds=rounds,
        evaluate_fn=lambda round_, arrays: ends.append(time.monotonic()),
    )
    grid.close()
    return [end - start - TRAIN_S for start, end in pairwise(ends)]


def report(name: str, overheads: list[float]) -> None:
    """Print one arm."""
    print(
        f"{name:<28} {len(overheads):>3} rounds  min {min(overheads):6.2f} s  "
        f"median {median(overheads):6.2f} s  max {max(overheads):6.2f} s",
        flush=True,
    )


def main() -> None:
    """Run both arms and print their overheads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--stock-rounds", type=int, default=4)
    parser.add_argument("--devices-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.devices_of:
        run_devices(arguments.devices_of)
        return
    print(
        f"{DEVICES} devices, {len(adapter())} tensors, {TRAIN_S} s of training; overhead a round:"
    )
    with tempfile.TemporaryDirectory() as folder:
        report("rootlet serve", rootlet_rounds(Path(folder), arguments.rounds))
    with tempfile.TemporaryDirectory() as folder:
        report("flower-superlink + FedAvg", flower_rounds(Path(folder), arguments.stock_rounds))


if __name__ == "__main__":
    main()
