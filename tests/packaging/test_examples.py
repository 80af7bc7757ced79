"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_compile_and_train(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "compile_and_train.py"), str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    before, after = map(float, re.findall(r"([\d.]+)%", result.stdout))
    assert after > before + 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_full_pipeline(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "full_pipeline.py"), "--small", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=580,
    )
    last = result.stdout.splitlines()[-1]
    found = re.findall(r"(\w+): version 1 ([\d.]+)%, version 2 ([\d.]+)%, gate: (\w+)", last)
    assert [name for name, *_ in found] == ["cnn", "transformer"]
    for name, before, after, gate in found:
        assert float(after) > float(before) + 20
        assert gate == "published"
        assert (tmp_path / f"{name}-2.rootlet").is_file()
