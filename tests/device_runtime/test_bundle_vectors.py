"""Every refusal of the bundle's contract, from vectors that other implementations share."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rootlet_runtime import Bundle, BundleLimits, errors

FOLDER = Path(__file__).parents[1] / "vectors" / "bundles"
EXPECTATIONS = json.loads((FOLDER / "expectations.json").read_text())


def load(case: dict[str, Any]) -> None:
    arguments = EXPECTATIONS | case["arguments"]
    keys = [Ed25519PublicKey.from_public_bytes(bytes.fromhex(k)) for k in arguments["trusted_keys"]]
    Bundle.load(
        FOLDER / case["file"],
        trusted_keys=keys,
        minimum_version=arguments["minimum_version"],
        now=datetime.fromisoformat(arguments["now"]),
        limits=BundleLimits(**arguments.get("limits", {})),
    ).close()


@pytest.mark.parametrize("case", EXPECTATIONS["cases"], ids=lambda case: case["case"])
def test_vector(case: dict[str, Any]) -> None:
    if case["error"] is None:
        load(case)
        return
    with pytest.raises(errors.BundleError) as refusal:
        load(case)
    assert type(refusal.value).__name__ == case["error"]
    assert str(refusal.value)


def test_the_engine_is_not_touched_by_any_of_them() -> None:
    program = f"""
import runpy, sys
module = runpy.run_path({str(Path(__file__))!r})
for case in module["EXPECTATIONS"]["cases"]:
    try:
        module["load"](case)
    except module["errors"].BundleError:
        pass
    assert "onnxruntime" not in sys.modules, case["case"]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_every_file_is_small_and_used() -> None:
    files = {path.name for path in FOLDER.glob("*.rootlet")}
    assert files == {case["file"] for case in EXPECTATIONS["cases"]}
    assert all((FOLDER / name).stat().st_size < 50_000 for name in files)
