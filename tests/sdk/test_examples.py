"""The example of an embedding app runs as it stands."""

import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed_sdk.py"


def test_the_example_trains_and_predicts(mlp_bundle, tmp_path):
    np.savez(tmp_path / "data.npz", x=mlp_bundle.x[:60], y=mlp_bundle.y[:60])
    run = subprocess.run(
        [
            *(sys.executable, str(EXAMPLE), str(mlp_bundle.path)),
            *(str(mlp_bundle.public_key_path), str(tmp_path / "data.npz")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    trained, prediction = run.stdout.splitlines()[:2]
    assert trained.startswith("trained ")
    assert prediction.startswith("prediction for the first example: [")
