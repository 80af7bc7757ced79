"""The SDK's table of contents is exact, and importing it is light."""

import subprocess
import sys
import types

import rootlet


def test_the_table_of_contents_is_exact_and_sorted():
    public = {
        name
        for name, value in vars(rootlet).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(rootlet.__all__) == public
    assert rootlet.__all__ == sorted(rootlet.__all__)


def test_importing_the_sdk_loads_no_engine_and_no_framework():
    script = (
        "import sys, rootlet\n"
        "heavy = {'torch', 'flwr', 'ray', 'onnxruntime', 'onnx', 'matplotlib', 'rich'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"loaded: {run.stderr}"
