"""`rootlet device`: its options, what it prints, and how it ends without a server."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import time

import numpy as np
import pytest

from rootlet.cli_device import _interruptions, _training, _Visit, add_device_parser
from rootlet.cli_policy import policy_of
from rootlet.continual import ContinualConfig
from rootlet.data import ArrayData
from rootlet.device_log import DeviceLog
from rootlet.policy import ParticipationPolicy
from rootlet.status import DeviceEvent, DeviceState, DeviceStatus
from rootlet.train_config import TrainConfig
from rootlet_runtime import Bundle
from rootlet_runtime.replay import ReplaySettings

NEEDED = ("device", "--superlink", "h:1", "--bundle", "b", "--trusted-key", "k", "--data", "d.npz")
TRAINED = {
    "num-examples": 51,
    "loss": 0.53,
    "accuracy_received": 0.62,
    "accuracy_trained": 0.71,
    "train_s": 0.414,
    "energy_estimated_j": 0.0213,
    "bytes_down": 12345,
    "bytes_up": 2_345_678,
}


@pytest.fixture
def parse():
    parser = argparse.ArgumentParser()
    add_device_parser(parser.add_subparsers(required=True))

    def parse_(*options):
        return parser.parse_args([*NEEDED, *options])

    return parse_


@pytest.fixture
def run(parse, mlp_bundle, tmp_path):
    """Runs the command with a real bundle and data; options replace its own."""

    def run_(*options):
        np.savez(tmp_path / "data.npz", x=mlp_bundle.x[:20], y=mlp_bundle.y[:20])
        arguments = parse(
            *("--superlink", "127.0.0.1:9", "--bundle", str(mlp_bundle.path)),
            *("--data", str(tmp_path / "data.npz"), "--state-dir", str(tmp_path / "state")),
            *options,
        )
        arguments.trusted_key = [mlp_bundle.public_key_path]
        return arguments.run(arguments)

    return run_


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ((), ParticipationPolicy()),
        (
            ("--ignore-conditions", "--only-when-idle", "--quiet-hours", "22:00-07:00"),
            ParticipationPolicy(charging=False, unmetered=False, battery_above=0.0),
        ),
        (("--allow-on-battery",), ParticipationPolicy(charging=False)),
        (("--allow-metered",), ParticipationPolicy(unmetered=False)),
        (("--only-when-idle",), ParticipationPolicy(idle=True)),
        (("--battery-above", "0.5"), ParticipationPolicy(battery_above=0.5)),
        (
            ("--quiet-hours", "22:00-07:30"),
            ParticipationPolicy(quiet_hours=(time(22), time(7, 30))),
        ),
        (("--max-rounds-per-day", "3"), ParticipationPolicy(max_rounds_per_day=3)),
    ],
)
def test_options_describe_a_policy(parse, options, policy):
    assert policy_of(parse(*options)) == policy


def test_options_describe_how_it_trains(parse, mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        default = _training(parse(), bundle.manifest)
        options = ("--engine", "litert", "--replay-bytes", "50000", "--distillation", "0.3")
        asked = _training(parse(*options), bundle.manifest)
    assert default == TrainConfig()
    assert asked == TrainConfig(
        engine="litert",
        continual=ContinualConfig(replay=ReplaySettings(quota_bytes=50_000), distillation=0.3),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-rounds", "0"), "at least 1"),
        (("--replay-bytes", "0"), "at least 1"),
        (("--engine", "tensorrt"), "invalid choice"),
        (("--max-rounds", "many"), "at least 1"),
        (("--quiet-hours", "late"), "not like 22:00-07:00"),
        (("--battery-above", "much"), "invalid float"),
    ],
)
def test_wrong_options_end_with_code_2(parse, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        parse(*options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bundle", "/absent.rootlet"), "/absent.rootlet"),
        (("--data", "/absent.npz"), "numpy.savez"),
        (("--holdout", "/absent.npz"), "numpy.savez"),
        (("--node-key", "/absent.key"), "/absent.key"),
        (("--superlink", "http://example.org:80"), "example.org"),
        (("--superlink", "nowhere"), "nowhere"),
        (("--battery-above", "7"), "battery_above is 7"),
        (("--distillation", "0.5"), "CompileConfig(distillation=True)"),
        (("--engine", "litert"), "carries no LiteRT model"),
        (("--events", "/absent/events.jsonl"), "/absent/events.jsonl"),
        (("--state-dir", "/proc/state"), "/proc/state"),
        (("--generate-node-key",), "add --node-key FILE"),
    ],
)
def test_what_cannot_be_used_ends_with_code_1_and_one_line(run, capsys, options, message):
    assert run(*options) == 1
    error = capsys.readouterr().err
    assert error.startswith("rootlet: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_state_is_encrypted_unless_told_otherwise(run, capsys, tmp_path):
    assert run("--superlink", "nowhere", "--keystore", "none") == 1
    assert not (tmp_path / "state" / "vault.key").exists()
    assert run("--superlink", "nowhere") == 1
    assert (tmp_path / "state" / "vault.key").exists()
    assert "is sealed" not in capsys.readouterr().err
    assert run("--superlink", "nowhere", "--keystore", "none") == 1
    assert "is sealed: give the keystore" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--data", "--holdout"])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 999), np.float32), np.zeros(3, np.int64), "x: shape (3, 999)"),
        (None, np.full(20, 99), "y: label 99"),
        (None, np.zeros(20, np.float32), "y: dtype float32"),
        (np.full(1, np.nan), None, "NaN"),
        (np.zeros(0), None, "x: empty"),
    ],
)
def test_data_that_does_not_fit_the_bundle_is_refused_before_joining(
    run, mlp_bundle, tmp_path, capsys, option, x, y, message
):
    rows = mlp_bundle.x[:20]
    if x is None:
        x = rows
    elif x.ndim == 1:
        x = np.broadcast_to(x[:, np.newaxis], (len(x), rows.shape[1]))
    y = mlp_bundle.y[: len(x)] if y is None else y
    np.savez(tmp_path / "other.npz", x=x, y=y)
    assert run(option, str(tmp_path / "other.npz")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"rootlet: {tmp_path / 'other.npz'}: ")
    assert message in captured.err


def test_an_untrusted_bundle_is_refused(parse, mlp_bundle, tmp_path, capsys):
    from rootlet_runtime import generate_keypair, save_keypair

    _, stranger = save_keypair(tmp_path / "stranger", generate_keypair()[0])
    arguments = parse("--bundle", str(mlp_bundle.path))
    arguments.trusted_key = [stranger]
    assert arguments.run(arguments) == 1
    assert "not trusted" in capsys.readouterr().err


def test_a_round_is_one_plain_line():
    stream = io.StringIO()
    with DeviceLog(stream, None) as log:
        log.event(DeviceEvent(kind="trained", message_type="train", round=4, metrics=TRAINED))
    assert stream.getvalue() == (
        "round 4 trained: accuracy 0.62 -> 0.71, loss 0.53, 51 examples, 0.41 s, "
        "about 0.021 J (estimate), 12.3 kB down, 2.3 MB up\n"
    )


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (DeviceEvent(kind="waiting", detail="not charging"), "waiting: not charging\n"),
        (DeviceEvent(kind="taken"), "taken\n"),
        (DeviceEvent(kind="pulled", message_type="train"), ""),
        (DeviceEvent(kind="answered", message_type="train"), ""),
        (
            DeviceEvent(kind="answered", message_type="train", detail="another bundle"),
            "train refused: another bundle\n",
        ),
        (
            DeviceEvent(
                kind="evaluated",
                round=2,
                metrics={"num-examples": 9, "loss": 1.5, "error_received": 0.25},
            ),
            "round 2 evaluated: error 0.25, loss 1.5, 9 examples\n",
        ),
    ],
)
def test_other_events_are_plain_lines_or_quiet(event, line):
    stream = io.StringIO()
    with DeviceLog(stream, None) as log:
        log.event(event)
    assert stream.getvalue() == line


def test_every_event_is_a_line_of_json(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "from an earlier run"}\n')
    with DeviceLog(io.StringIO(), path) as log:
        log.event(DeviceEvent(kind="pulled", message_type="train"))
        log.event(DeviceEvent(kind="trained", round=1, metrics=TRAINED))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["from an earlier run", "pulled", "trained"]
    assert lines[2]["metrics"] == TRAINED
    assert lines[2]["time"].endswith("+00:00")


def test_beginning_and_end_say_what_came_in_and_what_came_of_it(mlp_bundle):
    stream = io.StringIO()
    data = ArrayData.split((mlp_bundle.x[:20], mlp_bundle.y[:20]))
    with (
        DeviceLog(stream, None) as log,
        Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle,
    ):
        log.started(bundle.manifest, data)
        status = DeviceStatus(
            state=DeviceState.IDLE,
            examples=0,
            rounds=3,
            rounds_today=3,
            decision=None,
            last_error="",
            bytes_up=40_100,
            bytes_down=999,
        )
        log.ended(status)
    assert stream.getvalue().splitlines() == [
        "device: bundle digits version 1, 16 examples to learn from, 4 held out",
        "left: 3 rounds trained, 1.0 kB down, 40.1 kB up",
    ]


@pytest.fixture
def visit():
    def visit_(max_rounds, *kinds):
        visit = _Visit(max_rounds, DeviceLog(io.StringIO(), None))
        for kind, message_type in kinds:
            metrics = TRAINED if kind in {"trained", "evaluated"} else {}
            visit.hear(DeviceEvent(kind=kind, message_type=message_type, metrics=metrics))
        return visit

    return visit_


ROUND = (("trained", "train"), ("pushed", "train"), ("evaluated", "evaluate"))


def test_a_visit_ends_when_its_last_round_has_been_evaluated(visit):
    assert not visit(2, *ROUND, ("pushed", "evaluate"), *ROUND).over.is_set()
    assert visit(2, *ROUND, ("pushed", "evaluate"), *ROUND, ("pushed", "evaluate")).over.is_set()


def test_a_visit_does_not_wait_for_ever_for_its_last_evaluation(visit, monkeypatch):
    monkeypatch.setattr("rootlet.cli_device.LAST_EVALUATION_S", 0.01)
    visit(1, *ROUND[:2]).wait()


def test_a_visit_without_a_bound_ends_only_when_the_device_gives_up(visit):
    rounds = (*ROUND, ("pushed", "evaluate")) * 5
    assert not visit(None, *rounds).over.is_set()
    assert visit(None, *rounds, ("gave up", "")).over.is_set()


def test_an_interruption_asks_to_leave_and_the_handlers_are_given_back():
    before, over = signal.getsignal(signal.SIGTERM), threading.Event()
    with _interruptions(over):
        os.kill(os.getpid(), signal.SIGTERM)
        assert over.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interruption_ends_the_process_at_once():
    script = (
        "import os, signal, threading\n"
        "from rootlet.cli_device import _interruptions\n"
        "with _interruptions(threading.Event()):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait(30)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert run.returncode == 130
