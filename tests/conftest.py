"""Fixtures for every test: one small real bundle, compiled once per worker."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rootlet_runtime import signing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from torch import Tensor, nn

    from rootlet_server.compiler import CompileConfig
    from rootlet_server.compiler.build import Built


@dataclass(frozen=True)
class BundleOnDisk:
    """A compiled bundle, its keys, and data to learn from: x float32 [n, 64], y int64 [n]."""

    path: Path
    signing_key: Ed25519PrivateKey
    signing_key_path: Path
    public_key_path: Path
    x: np.ndarray
    y: np.ndarray

    @property
    def trusted_keys(self) -> list[Ed25519PublicKey]:
        return [self.signing_key.public_key()]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)


@pytest.fixture(scope="session")
def mlp_bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleOnDisk:
    """An MLP trained on upright digits; x and y are digits lying on their side."""
    return _digits_bundle(tmp_path_factory, "mlp-bundle", _digits_config())


@pytest.fixture(scope="session")
def float_bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleOnDisk:
    """`mlp_bundle` with a float32 base.

    Two engines that add in another order stay close on it. On an int8 base they round some
    activation to another code in every few hundred thousand, and from there a learner goes its own
    way: which one, and whether at all, is another matter on every processor.
    """
    config = replace(_digits_config(), base_dtype="float32")
    return _digits_bundle(tmp_path_factory, "float-bundle", config)


def _digits_bundle(
    tmp_path_factory: pytest.TempPathFactory, name: str, config: CompileConfig
) -> BundleOnDisk:
    """The workers of one run share it: the first that needs it compiles it."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / name
    path = folder / "digits.rootlet"
    with FileLock(shared / f"{name}.lock"):
        if not path.exists():
            folder.mkdir(exist_ok=True)
            _compile_digits(path, folder / "publisher", config)
    key = signing.load_private_key(folder / "publisher.pem")
    x, y = _digits()
    turned = np.rot90(x.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64).copy()
    return BundleOnDisk(
        path=path,
        signing_key=key,
        signing_key_path=folder / "publisher.pem",
        public_key_path=folder / "publisher.pub.pem",
        x=turned[600:1000],
        y=y[600:1000],
    )


@pytest.fixture
def mlp_built(mlp_bundle: BundleOnDisk) -> tuple[Built, Tensor, CompileConfig]:
    """What `mlp_bundle` was compiled from: the built steps, the calibration data, the options."""
    import torch
    from safetensors.torch import load_file

    from rootlet_server.compiler import build

    model, calibration = _digits_model(), torch.from_numpy(_digits()[0][:128])
    model.load_state_dict(load_file(mlp_bundle.path.with_name("model.safetensors")))
    return build(model, calibration, _digits_config()), calibration, _digits_config()


def _digits_model() -> nn.Module:
    import torch

    model = torch.nn.Sequential()
    for i, (fan_in, fan_out) in enumerate(((64, 64), (64, 32))):
        model.add_module(f"hidden{i}", torch.nn.Linear(fan_in, fan_out))
        model.add_module(f"relu{i}", torch.nn.ReLU())
    model.add_module("head", torch.nn.Linear(32, 10))
    return model


def _digits_config() -> CompileConfig:
    from rootlet_server.compiler import CompileConfig

    return CompileConfig(rule="dfa", optimizer="sgd", max_batch=32)


def _compile_digits(path: Path, key_stem: Path, config: CompileConfig) -> None:
    import torch
    from safetensors.torch import save_file

    from rootlet_server.compiler import compile_bundle

    x, y = _digits()
    torch.manual_seed(0)
    model = _digits_model()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    inputs, targets = torch.from_numpy(x[:600]), torch.from_numpy(y[:600])
    for _ in range(60):
        for part in torch.randperm(600).split(100):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[part]), targets[part]).backward()
            optimizer.step()
    save_file(model.state_dict(), path.with_name("model.safetensors"))
    key, _ = signing.generate_keypair()
    signing.save_keypair(key_stem, key)
    compile_bundle(
        model,
        calibration_x=x[:128],
        config=config,
        name="digits",
        version=1,
        signing_key=key,
        out=path,
    )
