"""What training on latents saves, and what storing them in fewer bits costs.

    python tests/benchmarks/bench_latent.py

A small separable convolutional net on MNIST digits; adapters on its last two layers. It learns
digits turned by 90 degrees, and replays 200 upright ones. About three minutes on one core.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.replay import Replay, ReplayBuffer, ReplaySettings, quota_bytes
from rootlet_server.bench.problem import drawn_for_relu, share, train_base
from rootlet_server.bench.task_handwriting import Separable, pictures
from rootlet_server.compiler import CompileConfig, LoraConfig, compile_bundle

SEEDS = 3
EPOCHS = 5
REPLAYED = 200
SITES = ("pointwise.2",)


def bundle(seed: int, folder: Path, *, latent: bool) -> Bundle:
    """The compiled net; its base has learnt 1,500 upright digits."""
    x, y = pictures()
    rows = np.random.default_rng(seed).permutation(len(x))[:1500]
    torch.manual_seed(seed)
    model = drawn_for_relu(Separable())
    train_base(model, share(x[rows, None], y[rows]), epochs=8, learning_rate=3e-3)
    path = folder / f"{seed}-{latent}.rootlet"
    compile_bundle(
        model,
        calibration_x=x[rows[:128], None],
        config=CompileConfig(
            adapter=LoraConfig(target_modules=SITES), optimizer="adam", latent=latent
        ),
        name="latent",
        version=1,
        signing_key=None,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[], allow_unsigned=True)


def fit(trainer: Trainer, seed: int, replay: Replay | None = None) -> float:
    """Seconds of five epochs over 800 turned digits."""
    x, y = pictures()
    rows = np.random.default_rng(seed).permutation(len(x))[1500:2300]
    started = time.perf_counter()
    trainer.fit(
        np.rot90(x[rows], axes=(1, 2))[:, None],
        y[rows],
        epochs=EPOCHS,
        batch_size=32,
        learning_rate=3e-3,
        rng=np.random.default_rng(seed),
        replay=replay,
    )
    return time.perf_counter() - started


def accuracies(trainer: Trainer, seed: int) -> tuple[float, float]:
    """On turned and on upright digits that nothing was trained on, in points."""
    x, y = pictures()
    rows = np.random.default_rng(seed).permutation(len(x))[2500:3500]
    turned = trainer.evaluate(np.rot90(x[rows], axes=(1, 2))[:, None], y[rows])
    return 100 * turned.metric, 100 * trainer.evaluate(x[rows, None], y[rows]).metric


def replayed(source: Bundle, seed: int, storage: str) -> tuple[float, float, int]:
    """Accuracies after training with upright latents in the buffer; and its quota in bytes."""
    x, y = pictures()
    rows = np.random.default_rng(seed).permutation(len(x))[:REPLAYED]
    trainer = Trainer(source)
    wanted = ReplaySettings(quota_bytes=0, storage=storage)  # type: ignore[arg-type]
    quota = quota_bytes(source.manifest, wanted, REPLAYED)
    settings = ReplaySettings(quota_bytes=quota, storage=storage)  # type: ignore[arg-type]
    buffer = ReplayBuffer(source.manifest, settings)
    trainer.remember(buffer, x[rows, None], y[rows], np.random.default_rng(seed))
    fit(trainer, seed, Replay(buffer=buffer, fraction=0.5))
    return *accuracies(trainer, seed), quota


def main() -> None:
    """Prints both tables."""
    ratios: list[float] = []
    by_storage: dict[str, list[tuple[float, float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            whole, cut = (bundle(seed, Path(folder), latent=latent) for latent in (False, True))
            times = {latent: [] for latent in (False, True)}
            for _ in range(5):
                for latent, source in ((False, whole), (True, cut)):
                    times[latent].append(fit(Trainer(source), seed))
            ratios += [b / a for a, b in zip(times[False], times[True], strict=True)]
            for storage in ("exact", "float16", "uint8"):
                by_storage.setdefault(storage, []).append(replayed(cut, seed, storage))
    print(
        "| storage | turned | upright (replayed) | bytes of 200 latents |",
        "|---|---|---|---|",
        sep="\n",
    )
    for storage, rows in by_storage.items():
        turned, upright, quota = (np.array(column) for column in zip(*rows, strict=True))
        print(
            f"| {storage} | {turned.mean():.1f} ± {turned.std(ddof=1):.1f} | "
            f"{upright.mean():.1f} ± {upright.std(ddof=1):.1f} | {quota[0]} |"
        )
    print(f"fit on latents / on inputs, {EPOCHS} epochs: median ratio {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
