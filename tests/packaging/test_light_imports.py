"""What a device process loads, observed in processes of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "flwr", "ray", "onnxruntime", "ai_edge_litert", "onnx", "matplotlib", "sklearn",
    "grpc", "pandas",
)  # fmt: skip
GOOD = Path(__file__).parents[1] / "vectors" / "bundles" / "good.rootlet"

TRAIN = f"""
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rootlet_runtime import Bundle, Trainer
key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
trainer = Trainer(Bundle.load({str(GOOD)!r}, trusted_keys=[key]))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 4)), rng.integers(0, 3, 8)
trainer.fit(x, y, epochs=1, batch_size=4, learning_rate=0.1, rng=rng)
trainer.evaluate(x, y)
trainer.predict(x)
"""


def loaded(program: str) -> set[str]:
    report = f"{program}\nimport sys\nprint(*{{n.partition('.')[0] for n in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", report], check=True, capture_output=True, text=True, timeout=60
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "module", ["rootlet_runtime", "rootlet_runtime.engines", "rootlet", "rootlet.cli_bundle"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import {module}") & set(HEAVY) == set()


def test_verifying_loads_no_engine() -> None:
    before_training, _, _ = TRAIN.partition("trainer = ")
    verify = f"Bundle.load({str(GOOD)!r}, trusted_keys=[key])"
    assert loaded(before_training + verify) & set(HEAVY) == set()


def test_training_loads_onnxruntime_only() -> None:
    assert loaded(TRAIN) & set(HEAVY) == {"onnxruntime"}
