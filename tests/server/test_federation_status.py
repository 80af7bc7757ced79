"""A federation's status: what events come to, what is printed, and what Prometheus reads."""

import io
import json
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rootlet.lock import DirectoryLock
from rootlet_server.cli import main
from rootlet_server.errors import ServeConfigError
from rootlet_server.federation import events
from rootlet_server.federation.console import show_events
from rootlet_server.federation.events import EventLog
from rootlet_server.federation.metrics import metrics_endpoint
from rootlet_server.federation.status import FederationStatus, read_status
from rootlet_server.federation.tensorboard import figures, tensorboard_log

ROUND = {
    "devices": 3, "asked": 4, "seconds": 2.5, "means": {"loss": 0.5, "accuracy_trained": 0.75},
    "bytes_down": 1000, "bytes_up": 400, "train_s": 1.0, "energy_estimated_j": 1.5,
}  # fmt: skip
HAPPENED = [
    events.Listening(address="127.0.0.1:9444", root_certificate=None, node_auth=False),
    events.Waiting(online=1, needed=3),
    events.RoundStarted(round=1, cohort=[1, 2, 3, 4]),
    events.ReplyRefused(round=1, node=4, phase="train", reason="not finite"),
    events.RoundFinished(round=1, central={"accuracy": 0.6}, **ROUND),
    events.RoundStarted(round=2, cohort=[1, 2, 3, 4]),
    events.RoundFinished(round=2, central={"accuracy": 0.7}, **ROUND),
]


@pytest.fixture
def state_dir(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    for event in HAPPENED:
        log.write(event)
    log.close()
    return tmp_path


def test_events_add_up(state_dir):
    status = read_status(state_dir / "events.jsonl")
    assert (status.state, status.round) == ("between rounds", 2)
    assert (status.online, status.asked, status.answered) == (4, 4, 3)
    assert (status.bytes_down, status.bytes_up, status.energy_estimated_j) == (2000, 800, 3.0)
    assert (status.refused, status.last_refusal) == (1, "round 1, node 4: not finite")
    assert (status.means["loss"], status.central["accuracy"]) == (0.5, 0.7)
    assert status.last_event_s == HAPPENED[-1].at_s
    status.hear(events.RunFinished(rounds=2, error="too few devices"))
    assert (status.state, status.error) == ("failed", "too few devices")
    status.hear(events.Published(path="/x/2.rootlet", version=2))
    assert (status.state, status.version) == ("finished", 2)


def test_it_is_printed_for_people_and_programs(state_dir, capsys):
    with DirectoryLock(state_dir):  # as a server holds it
        assert main(["status", "--state-dir", str(state_dir)]) == 0
    said = capsys.readouterr().out
    assert "running, between rounds" in said
    assert "2 finished: 3 of 4 devices, 2.5 s" in said
    assert "no epsilon is promised" in said
    assert "1; the last: round 1, node 4: not finite" in said
    assert main(["status", "--state-dir", str(state_dir), "--json"]) == 1  # nobody goes on
    found = json.loads(capsys.readouterr().out)
    assert (found["served"], found["round"], found["means"]["loss"]) == (False, 2, 0.5)


def test_a_folder_without_a_federation_is_named(tmp_path, capsys):
    assert main(["status", "--state-dir", str(tmp_path)]) == 2
    assert "no federation ran in" in capsys.readouterr().err


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def test_prometheus_reads_what_happened():
    port, heard = free_port(), []
    with metrics_endpoint(port, heard.append) as hear:
        assert scraped(port)["rootlet_round",] == 0
        for event in HAPPENED:
            hear(event)
        found = scraped(port)
    assert heard == HAPPENED
    assert found["rootlet_round",] == 2
    assert found["rootlet_bytes_up_total",] == 800
    assert found["rootlet_replies_refused_total",] == 1
    assert found["rootlet_metric", "devices", "loss"] == 0.5
    assert found["rootlet_metric", "accuracy", "server"] == 0.7
    assert found["rootlet_seconds_since_event",] >= 0
    with pytest.raises(OSError, match="refused"):
        scraped(port)  # gone with the federation


def test_a_port_that_is_taken_is_named():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with (
            pytest.raises(ServeConfigError, match=f"--metrics-port {port}: 127.0.0.1 cannot"),
            metrics_endpoint(port, print),
        ):
            pass
    with metrics_endpoint(None, print) as same:
        assert same is print


def test_a_status_without_events():
    assert FederationStatus().state == "starting"


def test_json_lines_are_the_events(state_dir):
    shown = io.StringIO()
    with show_events(shown, as_json=True) as show:
        for event in HAPPENED:
            show(event)
    assert shown.getvalue() == (state_dir / "events.jsonl").read_text()


def test_tensorboard_gets_the_figures_of_every_round(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    heard = []
    with tensorboard_log(tmp_path, heard.append) as hear:
        for event in HAPPENED:
            hear(event)
    assert heard == HAPPENED
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, round(each.value, 6)) for each in read.Scalars("server/accuracy")] == [
        (1, 0.6), (2, 0.7),
    ]  # fmt: skip
    assert {"devices/loss", "round/seconds", "round/energy_estimated_j"} <= set(
        read.Tags()["scalars"]
    )
    protected = events.RoundFinished(round=3, protection="one sum", **(ROUND | {"means": {}}))
    assert set(figures(protected)) == {"round/seconds", "round/devices"}


def test_protection_epsilon_restarts_and_the_budget_are_told(state_dir, capsys):
    log = EventLog(state_dir / "events.jsonl")
    protected = ROUND | {"means": {}, "protection": "one sum, epsilon 2 at delta 1e-05"}
    for event in (
        events.Restarted(reason="the SuperLink died"),
        events.RoundRepeated(round=3, reason="too few"),
        events.RoundFinished(round=3, epsilon=2.0, **protected),
        events.BudgetSpent(round=3, reason="above the budget of 2"),
    ):
        log.write(event)
    log.close()
    status = read_status(state_dir / "events.jsonl")
    assert (status.restarts, status.epsilon, status.note) == (1, 2.0, "above the budget of 2")
    main(["status", "--state-dir", str(state_dir)])
    shown = capsys.readouterr().out
    assert "privacy     one sum, epsilon 2 at delta 1e-05" in shown
    assert "note        above the budget of 2" in shown
    assert "energy" not in shown
