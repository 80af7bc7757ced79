"""The table of contents is exact, and the command line loads no torch for it."""

from __future__ import annotations

import subprocess
import sys
import types

import rootlet_server.training as training


def test_the_table_of_contents_is_exact_and_sorted():
    public = {
        name
        for name, value in vars(training).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(training.__all__) == public
    assert training.__all__ == sorted(training.__all__)


def test_the_command_line_loads_neither_torch_nor_accelerate():
    script = (
        "import sys, rootlet_server.cli as cli\n"
        "cli.build_parser()\n"
        "heavy = {'torch', 'accelerate', 'opacus', 'pytorch_optimizer', 'matplotlib'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"loaded: {run.stderr}"
