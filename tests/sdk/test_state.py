"""The state directory: one user at a time, versions that never go back, rounds of the day."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import date

import pytest

from rootlet.errors import StateError
from rootlet.state import StateDirectory
from rootlet_runtime.errors import RollbackError

DAY = date(2026, 11, 23)


@dataclass
class NamedVersion:
    """All that the state directory reads of a manifest."""

    name: str
    version: int


@pytest.fixture
def state(tmp_path):
    with StateDirectory(tmp_path / "state") as opened:
        yield opened


def test_a_second_client_is_refused_and_told_who_holds_it(state):
    with pytest.raises(StateError, match=r"in use by process \d+"):
        StateDirectory(state.path)


def test_another_process_is_refused(state):
    script = (
        "import sys; from pathlib import Path; from rootlet.state import StateDirectory\n"
        "StateDirectory(Path(sys.argv[1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(state.path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "StateError" in run.stderr


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from rootlet.state import StateDirectory\n"
        "state = StateDirectory(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert run.returncode == -9
    StateDirectory(tmp_path).close()


def test_closing_lets_the_next_one_in(tmp_path):
    first = StateDirectory(tmp_path)
    first.close()
    first.close()
    StateDirectory(tmp_path).close()


def test_versions_never_go_back(state):
    state.accept(NamedVersion("digits", 3))
    state.accept(NamedVersion("digits", 3))
    state.accept(NamedVersion("digits", 5))
    with pytest.raises(RollbackError, match=r"digits version 4 is older than version 5"):
        state.accept(NamedVersion("digits", 4))


def test_each_bundle_has_its_own_versions(state):
    state.accept(NamedVersion("digits", 3))
    state.accept(NamedVersion("words", 1))
    with pytest.raises(RollbackError, match="digits"):
        state.accept(NamedVersion("digits", 2))


def test_rounds_are_counted_by_local_day(state):
    assert state.rounds_on(DAY) == 0
    assert [state.count_round(DAY), state.count_round(DAY)] == [1, 2]
    assert state.rounds_on(DAY) == 2
    assert state.rounds_on(DAY.replace(day=24)) == 0
    assert state.count_round(DAY.replace(day=24)) == 1


def test_state_outlives_its_process(tmp_path):
    with StateDirectory(tmp_path) as state:
        state.accept(NamedVersion("digits", 3))
        state.count_round(DAY)
    with StateDirectory(tmp_path) as state:
        assert state.rounds_on(DAY) == 1
        with pytest.raises(RollbackError):
            state.accept(NamedVersion("digits", 2))


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"digits": "new"}', "3"])
def test_damaged_versions_are_refused_rather_than_forgotten(state, content):
    (state.path / "accepted.json").write_text(content)
    with pytest.raises(StateError, match=r"accepted\.json is damaged"):
        state.accept(NamedVersion("digits", 9))


def test_the_node_key_is_made_once_and_private(state):
    first = state.node_key()
    assert state.node_key().public_pem == first.public_pem
    assert (state.path / "node.key").stat().st_mode & 0o777 == 0o600
    assert (state.path / "node.key.pub").read_text().strip() == first.public_openssh


def test_a_key_half_written_by_a_crash_is_made_anew(state):
    (state.path / "node.key.new").write_text("-----BEGIN")
    assert state.node_key().public_pem
    assert not (state.path / "node.key.new").exists()


def test_only_the_current_bundle_s_adapter_is_kept(state):
    for sha256 in ("a" * 64, "b" * 64):
        state.adapter(sha256).mkdir()
    state.remove_other_adapters("b" * 64)
    assert not state.adapter("a" * 64).exists()
    assert state.adapter("b" * 64).is_dir()
