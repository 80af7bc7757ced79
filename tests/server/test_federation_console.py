"""A terminal gets a table of rounds, anything else one line an event."""

import io

from rootlet_server.federation.console import show_events
from rootlet_server.federation.events import Evaluated, Listening, RoundFinished, Waiting

EVENTS = (
    Listening(address="127.0.0.1:9444", root_certificate="/s/tls/ca.pem", node_auth=True),
    Waiting(online=1, needed=2),
    RoundFinished(
        round=1,
        devices=2,
        asked=3,
        seconds=1.5,
        means={"loss": 0.5, "error_received": 0.25, "error_trained": 0.125},
        bytes_down=2000,
        bytes_up=1000,
        train_s=1.0,
        energy_estimated_j=0.0312,
    ),
    Evaluated(round=1, devices=2, means={"error_received": 0.125}, central={"error": 0.25}),
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def show(stream):
    with show_events(stream) as on_event:
        for event in EVENTS:
            on_event(event)
    return stream.getvalue()


def test_a_pipe_gets_plain_lines():
    assert show(io.StringIO()).splitlines() == [
        "devices join at 127.0.0.1:9444 (trust /s/tls/ca.pem, registered device keys only)",
        "waiting for devices: 1 of 2 online",
        "round 1: 2/3 devices, received 0.25, trained 0.125, 2 kB down, 1 kB up, 1.50 s, "
        "0.0312 J (estimated)",
        "after round 1: 2 devices evaluate: error_received 0.125; on the server's data: error 0.25",
    ]


def test_a_terminal_gets_a_table(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    shown = show(Terminal())
    assert "energy (est.)" in shown
    assert "2/3" in shown
    assert "after round 1" in shown
