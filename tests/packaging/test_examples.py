"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
