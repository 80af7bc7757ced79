"""Buffered rounds on a grid in memory whose devices answer when the test's clock says so."""

import numpy as np
import pytest
from flwr.app import Message

from rootlet.flower import from_record_dict, to_record_dict
from rootlet.protocol import EvaluateReply, TrainReply, TrainRequest
from rootlet_server.errors import NotEnoughDevicesError
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.events import EventLog, EventReader
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.rounds import RoundLoop

pytestmark = pytest.mark.usefixtures("in_a_run")

MANIFEST = "ab" * 32
INITIAL = {"w": np.zeros(2, np.float32)}


class LookingGrid:
    """Each device answers a request after a number of looks at it; None for never."""

    def __init__(self, looks):
        self.looks = looks
        self.training = {}
        self.most_at_once = 0
        self.asked = []
        self._count = 0

    def get_node_ids(self):
        return list(self.looks)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"m{self._count}"
            node, train = message.metadata.dst_node_id, message.metadata.message_type == "train"
            left = self.looks[node] if train else 0
            self.training[f"m{self._count}"] = [message, left]
            if train:
                self.asked.append((node, int(message.metadata.group_id) - 1))
            ids.append(f"m{self._count}")
        trains = [m for m, _ in self.training.values() if m.metadata.message_type == "train"]
        self.most_at_once = max(self.most_at_once, len(trains))
        return ids

    def pull_messages(self, message_ids):
        answers = []
        for key in message_ids:
            if key not in self.training or self.training[key][1] is None:
                continue
            self.training[key][1] -= 1
            if self.training[key][1] < 0:
                answers.append(answer(self.training.pop(key)[0]))
        return answers


def answer(message):
    """A device that adds one to what it received."""
    if message.metadata.message_type == "evaluate":
        values = EvaluateReply(metric="accuracy", num_examples=1, loss=1.0, received=0.5)
    else:
        asked = TrainRequest.from_records(from_record_dict(message.content))
        values = TrainReply(
            adapter={n: a + np.float32(1) for n, a in asked.adapter.items()},
            metric="accuracy", num_examples=2, loss=1.0, received=0.5, trained=0.5, train_s=1.0,
            energy_estimated_j=1.0, bytes_down=1, bytes_up=1,
        )  # fmt: skip
    return Message(to_record_dict(values.to_records()), reply_to=message)


def run(folder, looks, **changes):
    options = changes.pop("options", {})
    plan = FederationPlan(**{
        "bundle": "tiny", "bundle_version": 1, "manifest_sha256": MANIFEST,
        "task": "classification", "rounds": 6, "min_devices": 2, "cohort_size": None, "epochs": 1,
        "batch_size": 8, "learning_rate": 0.1, "deadline_s": 3.0, "wait_s": 0.3,
        "max_examples": 1000, "checkpoint_path": folder / "federation.sqlite3",
        "events_path": folder / "events.jsonl", "bundle_path": folder / "tiny.rootlet",
        "trusted_keys": (), "strategy": "fedbuff",
        "strategy_options": {"buffer_size": 2, **options},
    } | changes)  # fmt: skip
    RoundCheckpoint(manifest_sha256=MANIFEST, round=0, adapter=INITIAL).save(plan.checkpoint_path)
    grid, log = LookingGrid(looks), EventLog(plan.events_path)
    try:
        state = RoundLoop(grid, plan, log).run()
        return state, list(EventReader(plan.events_path).read()), grid
    finally:
        log.close()


def test_a_slow_device_holds_nobody_up_and_its_work_counts(tmp_path):
    """Two answer at once and one after five looks: its update is stale and weighs less."""
    state, events, _ = run(tmp_path, {1: 0, 2: 0, 3: 5})
    assert state.round == 6
    finished = [event for event in events if event.kind == "round_finished"]
    assert [event.devices for event in finished] == [2] * 6
    late = [e for e in events if e.kind == "reply" and e.phase == "train" and e.staleness]
    assert late
    assert {event.node for event in late} == {3}
    # every fresh pair adds 1; a pair with a stale update less, and never nothing
    assert 5 < float(state.adapter["w"][0]) < 6


def test_nobody_is_asked_twice_for_one_version(tmp_path):
    _, _, grid = run(tmp_path, {1: 0, 2: 1, 3: 2, 4: 3}, rounds=10)
    assert len(set(grid.asked)) == len(grid.asked)


def test_as_many_train_at_once_as_the_plan_says(tmp_path):
    _, _, grid = run(tmp_path, dict.fromkeys(range(9), 1), cohort_size=3)
    assert grid.most_at_once == 3


def test_an_answer_beyond_the_most_staleness_is_left_out(tmp_path):
    _, events, _ = run(tmp_path, {1: 0, 2: 0, 3: 4}, options={"max_staleness": 1}, rounds=8)
    reasons = [event.reason for event in events if event.kind == "reply_refused"]
    assert reasons
    assert all("versions old; the strategy takes at most 1" in reason for reason in reasons)
    stale = [event.staleness for event in events if event.kind == "reply"]
    assert max(stale) <= 1


def test_a_version_ends_at_its_deadline_with_what_it_has(tmp_path):
    """One of two never answers: every version has the other's update alone."""
    state, events, _ = run(tmp_path, {1: 0, 2: None}, rounds=2, deadline_s=0.3)
    assert [e.devices for e in events if e.kind == "round_finished"] == [1, 1]
    np.testing.assert_array_equal(state.adapter["w"], [2, 2])


def test_too_few_answers_by_the_deadline_end_the_run(tmp_path):
    with pytest.raises(NotEnoughDevicesError, match="in 3 attempts, each of which needs 2"):
        run(tmp_path, {1: 0, 2: None}, rounds=2, deadline_s=0.3, min_replies=2)
