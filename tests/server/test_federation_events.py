"""The event log: what is written is what is read, whole lines only, unknown things ignored."""

import json

import pytest

from rootlet_server.federation.console import describe
from rootlet_server.federation.events import (
    Evaluated,
    EventLog,
    EventReader,
    ReplyRefused,
    RoundFinished,
    RoundStarted,
    parse_event,
)

STARTED = RoundStarted(at_s=1.0, round=1, cohort=[7, 8])
FINISHED = RoundFinished(
    at_s=2.0,
    round=1,
    devices=2,
    asked=2,
    seconds=1.5,
    means={"loss": 0.5, "accuracy_received": 0.25, "accuracy_trained": 0.75},
    bytes_down=2000,
    bytes_up=1000,
    train_s=1.0,
    energy_estimated_j=3.0,
)


def test_events_are_read_back_as_written(tmp_path):
    log, reader = EventLog(tmp_path / "e.jsonl"), EventReader(tmp_path / "e.jsonl")
    assert list(reader.read()) == []
    log.write(STARTED)
    assert list(reader.read()) == [STARTED]
    log.write(FINISHED)
    log.close()
    assert list(reader.read()) == [FINISHED]
    assert list(reader.read()) == []


def test_a_line_that_a_crash_tore_costs_no_other_event(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    log.write(STARTED)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "round_fini')
    late = EventReader(path, from_end=True)
    log = EventLog(path)
    log.write(FINISHED)
    log.close()
    assert list(EventReader(path).read()) == [STARTED, FINISHED]
    assert list(late.read()) == [FINISHED]


def test_a_second_run_appends_and_a_reader_from_the_end_sees_only_that(tmp_path):
    path = tmp_path / "e.jsonl"
    for event in (STARTED, FINISHED):
        log = EventLog(path)
        reader = EventReader(path, from_end=True)
        log.write(event)
        log.close()
    assert list(reader.read()) == [FINISHED]
    assert list(EventReader(path).read()) == [STARTED, FINISHED]


def test_a_line_that_is_still_being_written_waits_for_its_end(tmp_path):
    path = tmp_path / "e.jsonl"
    reader = EventReader(path)
    line = json.dumps({"kind": "round_started", "at_s": 1.0, "round": 1, "cohort": []})
    path.write_text(line)
    assert list(reader.read()) == []
    path.write_text(line + "\n")
    assert list(reader.read()) == [RoundStarted(at_s=1.0, round=1, cohort=[])]


def test_kinds_and_fields_of_a_later_version_are_ignored():
    assert parse_event('{"kind": "aurora", "at_s": 1.0}') is None
    line = '{"kind": "round_started", "at_s": 1.0, "round": 1, "cohort": [], "mood": "calm"}'
    assert parse_event(line) == RoundStarted(at_s=1.0, round=1, cohort=[])


def test_a_value_that_is_not_json_is_refused(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.write(Evaluated(round=1, devices=1, means={"loss": float("nan")}))
    log.close()
    assert (tmp_path / "e.jsonl").read_bytes() == b""


def test_a_round_is_told_in_one_line():
    assert describe(FINISHED) == (
        "round 1: 2/2 devices, received 25.0 %, trained 75.0 %, 2 kB down, 1 kB up, 1.50 s, "
        "3 J (estimated)"
    )


def test_a_refused_reply_is_told_with_its_reason():
    event = ReplyRefused(round=3, node=9, phase="train", reason="loss is nan")
    assert describe(event) == "round 3: left out node 9: loss is nan"
