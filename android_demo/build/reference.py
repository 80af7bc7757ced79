"""What the Python runtime computes from a bundle, for the library's tests to compare with.

    .venv/bin/python android_demo/build/reference.py OUT

Each folder of OUT holds a signed bundle, the publisher's key, the examples, and what a fit of the
Python runtime gives: every step's loss, the adapter in the end, the outputs; and what replay
buffers keep, and a fit that replays one.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import safetensors.numpy

from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.energy import count_work
from rootlet_runtime.replay import Replay, ReplayBuffer, ReplaySettings, quota_bytes
from rootlet_runtime.reservoir import Selection
from rootlet_runtime.row_codec import Storage
from rootlet_runtime.schedule import RateSchedule
from rootlet_runtime.signing import generate_keypair, public_key_hex
from rootlet_server.compiler import CompileConfig, compile_bundle
from rootlet_server.demo.base import COMPILE, train_base
from rootlet_server.demo.data import load_demo_data

KEPT = 24
EPOCHS = 20  # of 11 steps of 16 examples: 220 steps
CASES: dict[str, CompileConfig] = {
    "demo": COMPILE,
    "adam": dataclasses.replace(COMPILE, rule="backprop", base_dtype="float32", optimizer="adam"),
    "latent": dataclasses.replace(COMPILE, rule="head_only", latent=True, distillation=True),
}


def main(out: Path) -> None:
    """Writes every case."""
    data = load_demo_data(4, np.random.default_rng(0))
    model = train_base(data.source, seed=0, progress=lambda *_: None)
    for name, config in CASES.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        key, public = generate_keypair()
        compile_bundle(model, calibration_x=data.source.x[:128], config=config, name="digits",
                       version=1, signing_key=key, out=folder / "digits.rootlet")  # fmt: skip
        with Bundle.load(folder / "digits.rootlet", trusted_keys=[public]) as bundle:
            write_fit(bundle, data.devices[0].train, folder, public_key_hex(public))
            write_replay(bundle, data.devices[0].train, folder)


def write_fit(bundle: Bundle, share: object, folder: Path, publisher: str) -> None:
    """Trains, and writes what came of it."""
    x, y = share.x[:171], share.y[:171]  # the last batch of an epoch is smaller
    rate = 0.002 if bundle.manifest.optimizer == "adam" else 0.02
    rng = np.random.default_rng(7)
    seed = int(np.random.default_rng(7).integers(2**63))
    losses: list[float] = []
    trainer = Trainer(bundle)
    result = trainer.fit(
        x, y, epochs=EPOCHS, batch_size=16, learning_rate=rate, rng=rng, guard=None,
        schedule=RateSchedule(decay="cosine", warmup=0.1),
        progress=lambda step: losses.append(step.loss) or True,
    )  # fmt: skip
    measured = trainer.evaluate(x, y)
    safetensors.numpy.save_file(
        {"x": x, "y": y.astype(np.float32), "output": trainer.predict(x),
         "losses": np.array(losses, np.float32)},
        folder / "examples.safetensors",
    )  # fmt: skip
    safetensors.numpy.save_file(trainer.adapter, folder / "adapter.safetensors")
    facts = {
        "publisher": publisher, "seed": seed, "epochs": EPOCHS, "batch_size": 16,
        "learning_rate": rate, "steps": result.steps, "loss": measured.loss,
        "metric": measured.metric,
        "energy_j": count_work(bundle.manifest.cost, train_examples=171 * EPOCHS,
                               train_batches=result.steps).estimated_j,
    }  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "publisher.hex").write_text(publisher)


def write_replay(bundle: Bundle, share: object, folder: Path) -> None:
    """What buffers keep of some examples, and a fit on others that replays one."""
    trainer, losses, found = Trainer(bundle), [], {}
    for selection, storage in itertools.product(get_args(Selection), get_args(Storage)):
        settings = ReplaySettings(quota_bytes=2**20, selection=selection, storage=storage)
        quota = quota_bytes(bundle.manifest, settings, KEPT)
        buffer = ReplayBuffer(bundle.manifest, dataclasses.replace(settings, quota_bytes=quota))
        for part, seed in ((slice(0, 60), 3), (slice(60, 100), 4)):
            trainer.remember(buffer, share.x[part], share.y[part], np.random.default_rng(seed))
        found[f"{selection}/{storage}"] = buffer.examples()[0]
    trainer.fit(
        share.x[100:171], share.y[100:171], epochs=5, batch_size=16, learning_rate=0.01,
        rng=np.random.default_rng(7), guard=None, replay=Replay(buffer=buffer, fraction=0.4),
        schedule=RateSchedule(decay="constant", warmup=0.1),
        progress=lambda step: losses.append(step.loss) or True,
    )  # fmt: skip
    tensors = {**found, "uses": buffer.uses.astype(np.float32), "losses": np.float32(losses)}
    adapter = {f"adapter/{name}": value for name, value in trainer.adapter.items()}
    safetensors.numpy.save_file({**tensors, **adapter}, folder / "replay.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
