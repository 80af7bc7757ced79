"""The SDK says on the Fleet API what the Kotlin library is held to."""

import importlib.util
import json
from pathlib import Path

VECTORS = Path(__file__).parents[1] / "vectors"


def test_the_sdk_agrees_with_the_committed_vectors():
    path = VECTORS / "make_fleet_vectors.py"
    spec = importlib.util.spec_from_file_location("make_fleet_vectors", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert json.loads((VECTORS / "fleet.json").read_text()) == json.loads(
        json.dumps(made.vectors())
    )
