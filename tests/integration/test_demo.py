"""The main job, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rootlet_runtime import Bundle
from rootlet_runtime.signing import load_public_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def _demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rootlet_server.cli", "demo", "--out", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


def _run_folder(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def test_demo_holds_its_claim_and_leaves_what_it_says(tmp_path: Path) -> None:
    result = _demo(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "so it holds" in result.stdout
    assert "an estimate" in result.stdout
    assert re.search("^✓ 10 rounds", result.stdout, re.MULTILINE), "a line of its own"
    run = _run_folder(tmp_path)
    assert (run / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    keys = [load_public_key(run / "publisher.pub.pem")]
    with Bundle.load(run / "digits-2.rootlet", trusted_keys=keys) as improved:
        assert improved.manifest.version == 2
    assert len(list(run.glob("device-*"))) == 8
    (show,) = re.findall(r"^  (.* bundle show .*)$", result.stdout, re.MULTILINE)
    shown = subprocess.run(show, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert shown.stdout.startswith("VERIFIED")


def test_demo_fails_when_accuracy_does_not_rise_enough(tmp_path: Path) -> None:
    """The negative control: after a single round twelve devices have not learned enough."""
    result = _demo(tmp_path, "--rounds", "1", "--devices", "12")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "does not hold" in result.stdout


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_device_outlives_a_demo_that_was_killed(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "rootlet_server.cli", "demo", "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: any("activated" in log.read_text() for log in tmp_path.glob("*/*/log.txt")))
        assert _mentioning(tmp_path) - {demo.pid}
    finally:
        demo.send_signal(signal.SIGKILL)
        demo.wait()
    _until(lambda: not _mentioning(tmp_path))


def _mentioning(folder: Path) -> set[int]:
    """The processes with ``folder`` in their arguments."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes()
        except OSError:  # it has ended
            continue
        if str(folder).encode() in arguments:
            found.add(int(entry.parent.name))
    return found


def _until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
