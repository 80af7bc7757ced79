"""The command: a run that resumes, and what it says where something is missing."""

import json

import pytest

from rootlet_server.bench import packages
from rootlet_server.bench.packages import MissingDataError, package_folder, source_archive
from rootlet_server.cli import main

TINY = ("bench", "learning", "--task", "digits-2", "--rule", "head", "--rule", "dfa",
        "--seeds", "1", "--workers", "1", "--quick")  # fmt: skip


@pytest.mark.slow
def test_a_run_writes_its_page_and_takes_finished_cells_from_the_last(tmp_path, capsys):
    arguments = [*TINY, "--out", str(tmp_path)]
    assert main(arguments) == 0
    cells = (tmp_path / "cells.jsonl").read_text()
    kept = [json.loads(line) for line in cells.splitlines()]
    assert {record["arm"] for record in kept} == {"head", "dfa"}
    best = {r["arm"]: max(run["test"] for run in r["runs"]) for r in kept}
    assert best["dfa"] > 0.85  # chance is 0.1, and the unadapted base gets about 0.2
    page = (tmp_path / "learning.md").read_text()
    assert "| DFA, calibrated, calibrated A |" in page
    for plot in ("accuracy.png", "gaps.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
    assert main(arguments) == 0
    assert (tmp_path / "cells.jsonl").read_text() == cells
    assert "wrote" in capsys.readouterr().out


def test_an_unknown_task_is_refused_by_name(tmp_path, capsys):
    assert main(["bench", "learning", "--task", "tea", "--out", str(tmp_path)]) == 1
    assert "task 'tea' is not one of digits-2" in capsys.readouterr().err


def test_a_missing_package_is_answered_with_how_to_install_it():
    with pytest.raises(MissingDataError, match=r'pip install "rootlet\[bench\]"'):
        package_folder("a_package_that_is_not_there", "sensor")


def test_a_missing_archive_is_answered_with_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(MissingDataError, match=f"--dest {tmp_path} thing==1.0"):
        source_archive("thing-1.0.tar.gz", "thing==1.0", "text")


def test_a_prefix_is_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path))
    calls = []

    def compute():
        calls.append(1)
        return packages.np.arange(3, dtype="float32")

    first = packages.kept_array("name", compute)
    assert packages.kept_array("name", compute).tolist() == first.tolist() == [0.0, 1.0, 2.0]
    assert len(calls) == 1
