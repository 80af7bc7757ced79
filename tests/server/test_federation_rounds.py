"""The round loop on a grid in memory: who is asked, what is averaged, what is saved."""

import itertools
import random
import time

import numpy as np
import pytest
from flwr.app import Array, Error, Message
from flwr.serverapp import Grid

from rootlet.flower import from_record_dict, to_record_dict
from rootlet.protocol import EvaluateReply, TrainReply, TrainRequest
from rootlet_server.errors import NotEnoughDevicesError, RoundCheckpointError
from rootlet_server.federation.accepted import weighted_means
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.events import EventLog, EventReader
from rootlet_server.federation.exchange import Exchange
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.rounds import RoundLoop

pytestmark = pytest.mark.usefixtures("in_a_run")

MANIFEST = "ab" * 32
INITIAL = {"head.bias": np.zeros(3, np.float32), "head.weight": np.ones((3, 4), np.float32)}


class MemoryGrid(Grid):
    """Devices as functions from a request message to an answer, or to None for silence."""

    def __init__(self, devices):
        self.devices = devices
        self.asked = []
        self._inbox = {}
        self._ids = itertools.count()

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("the loop must not pay for polls of three seconds")

    def get_node_ids(self):
        return list(self.devices)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{next(self._ids)}"
            self._inbox[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        self.asked.append(sorted(message.metadata.dst_node_id for message in messages))
        return ids

    def pull_messages(self, message_ids):
        answers = []
        for message_id in message_ids:
            message = self._inbox.pop(message_id, None)
            if message is None:
                continue
            answer = self.devices[message.metadata.dst_node_id](message)
            if answer is not None:
                answers.append(answer)
        return answers


def device(examples=1, shift=1.0, accuracy=0.5, spoil=None):
    """A device that adds `shift` to the adapter it receives."""

    def answer(message):
        if message.metadata.message_type == "evaluate":
            values = EvaluateReply(
                metric="accuracy", num_examples=examples, loss=1.0, received=accuracy
            )
        else:
            request = TrainRequest.from_records(from_record_dict(message.content))
            values = TrainReply(
                adapter={
                    name: array + np.float32(shift) for name, array in request.adapter.items()
                },
                metric="accuracy",
                num_examples=examples,
                loss=1.0,
                received=accuracy,
                trained=accuracy,
                train_s=2.0,
                energy_estimated_j=3.0,
                bytes_down=100,
                bytes_up=10,
            )
        content = to_record_dict(values.to_records())
        if spoil is not None:
            spoil(content)
        return Message(content, reply_to=message)

    return answer


def silent(message):
    return None


def failing(message):
    return Message(Error(1002, "no battery"), reply_to=message)


def poisoned(content):
    if "arrays" in content:
        content["arrays"]["head.bias"] = Array(np.full(3, np.nan, np.float32))


@pytest.fixture
def plan(tmp_path):
    plan = FederationPlan(
        bundle="tiny",
        bundle_version=3,
        manifest_sha256=MANIFEST,
        task="classification",
        rounds=1,
        min_devices=1,
        cohort_size=None,
        epochs=1,
        batch_size=8,
        learning_rate=0.1,
        deadline_s=0.3,
        wait_s=0.3,
        max_examples=1000,
        checkpoint_path=tmp_path / "federation.sqlite3",
        events_path=tmp_path / "events.jsonl",
        bundle_path=tmp_path / "tiny.rootlet",
        trusted_keys=(),
    )
    RoundCheckpoint(manifest_sha256=MANIFEST, round=0, adapter=INITIAL).save(plan.checkpoint_path)
    return plan


def run(plan, devices, **options):
    """Run the loop; returns the checkpoint, the events and the grid."""
    grid, log = MemoryGrid(devices), EventLog(plan.events_path)
    try:
        return (
            RoundLoop(grid, plan, log, **options).run(),
            list(EventReader(plan.events_path).read()),
            grid,
        )
    finally:
        log.close()


def change(plan, **changes):
    return FederationPlan(**{**vars(plan), **changes})


def kinds(events):
    return [event.kind for event in events]


def test_the_average_is_weighted_by_the_numbers_of_examples(plan):
    state, events, _ = run(plan, {1: device(examples=1, shift=4.0), 2: device(examples=3)})
    # (1 * 4 + 3 * 1) / 4 = 1.75, exact in binary
    for name, array in state.adapter.items():
        np.testing.assert_array_equal(array, INITIAL[name] + np.float32(1.75))
        assert array.dtype == np.float32
    assert kinds(events) == [
        "round_started", "reply", "reply", "round_finished", "reply", "reply", "evaluated",
    ]  # fmt: skip


def test_sums_and_means_of_a_round(plan):
    _, events, _ = run(
        plan, {1: device(examples=1, accuracy=1.0), 2: device(examples=3, accuracy=0.0)}
    )
    finished = next(event for event in events if event.kind == "round_finished")
    assert finished.means["accuracy_received"] == 0.25
    assert (finished.devices, finished.asked) == (2, 2)
    assert (finished.bytes_down, finished.bytes_up) == (200, 20)
    assert (finished.train_s, finished.energy_estimated_j) == (2.0, 6.0)


def test_averages_of_adapters_with_a_shared_frozen_half_are_averages_of_the_models():
    """mean_k(B_k A) = mean_k(B_k) A: why calibrated adapters may be averaged exactly.

    Small integers, so that every product and sum is exact in float32.
    """
    rng = np.random.default_rng(0)
    a_RI = rng.integers(-4, 5, (2, 6)).astype(np.float32)
    b_KOR = rng.integers(-8, 9, (4, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal((b_KOR @ a_RI).mean(axis=0), b_KOR.mean(axis=0) @ a_RI)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(device(spoil=poisoned, examples=999), "not finite"), (failing, "no battery")],
)
def test_a_bad_reply_is_left_out_and_told(plan, bad, reason):
    state, events, _ = run(plan, {1: device(shift=2.0), 2: bad})
    np.testing.assert_array_equal(state.adapter["head.bias"], np.full(3, 2, np.float32))
    refused = [event for event in events if event.kind == "reply_refused"]
    assert {event.node for event in refused} == {2}
    assert reason in refused[0].reason


def test_a_silent_device_costs_the_deadline_and_nothing_else(plan):
    state, events, _ = run(plan, {1: device(), 2: silent})
    finished = next(event for event in events if event.kind == "round_finished")
    assert (finished.devices, finished.asked) == (1, 2)
    assert 0.3 <= finished.seconds < 2.0
    assert state.round == 1


def test_a_cohort_is_sampled_without_repetition(plan):
    devices = {node: device() for node in range(10)}
    _, _, grid = run(change(plan, rounds=5, cohort_size=3), devices, rng=random.Random(1))  # noqa: S311
    cohorts = grid.asked[:-1]
    assert all(len(set(cohort)) == 3 for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert grid.asked[-1] == list(range(10))  # everybody evaluates


def test_too_few_devices_end_the_run_with_the_remedy(plan):
    with pytest.raises(NotEnoughDevicesError, match=r"1 devices .* needs 2; start more devices"):
        run(change(plan, min_devices=2), {1: device()})


def test_rounds_without_an_update_end_the_run(plan):
    with pytest.raises(NotEnoughDevicesError, match="in 3 attempts"):
        run(plan, {1: failing})
    saved = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=MANIFEST)
    assert saved.round == 0


def test_a_run_goes_on_after_the_last_finished_round(plan):
    run(change(plan, rounds=2), {1: device()})
    state, _, grid = run(change(plan, rounds=3), {1: device()})
    assert state.round == 3
    assert len(grid.asked) == 2  # one round and the evaluation
    np.testing.assert_array_equal(state.adapter["head.bias"], np.full(3, 3, np.float32))


def test_the_servers_own_figures_are_in_the_round(plan):
    _, events, _ = run(plan, {1: device()}, central=lambda adapter: {"accuracy": 0.5})
    assert [event.central for event in events if hasattr(event, "central")] == [
        {"accuracy": 0.5}
    ] * 2


class Feedback:
    """A part that is there from the second round on, and who said that they hold it."""

    part = b"version 2"

    def __init__(self):
        self.held = {}

    def for_round(self, round_):
        return self.part if round_ > 1 else b""

    def lacks(self, node):
        return self.held.get(node, 0) < 2

    def heard(self, node, metrics):
        self.held[node] = metrics.get("feedback_version", 0)


def test_a_part_goes_to_those_who_may_lack_it(plan):
    got = {1: [], 2: []}

    def keeping(node, keeps):
        held = [0]

        def answer(message):
            if message.metadata.message_type == "train":
                part = TrainRequest.from_records(from_record_dict(message.content)).feedback
                got[node].append(part)
                held[0] = 2 if part and keeps else held[0]
            return device(spoil=told)(message)

        def told(content):
            if "arrays" in content and held[0]:
                content["metrics"]["feedback_version"] = held[0]

        return answer

    state, events, _ = run(
        change(plan, rounds=4),
        {1: keeping(1, keeps=True), 2: keeping(2, keeps=False)},
        feedback=Feedback(),
    )
    assert got == {
        1: [b"", b"version 2", b"", b""],
        2: [b"", b"version 2", b"version 2", b"version 2"],
    }
    np.testing.assert_array_equal(state.adapter["head.bias"], np.full(3, 4, np.float32))
    finished = [event for event in events if event.kind == "round_finished"]
    assert [event.devices for event in finished] == [2] * 4
    assert all("feedback_version" not in event.means for event in finished)
    versions = [e.metrics.get("feedback_version", 0) for e in events if e.kind == "reply"]
    assert sorted(versions[:8]) == [0] * 5 + [2] * 3


def wandering(node):
    """A device whose update depends on what it received and on nothing else."""

    def answer(message):
        if message.metadata.message_type == "evaluate":
            return device()(message)
        request = TrainRequest.from_records(from_record_dict(message.content))
        sum_ = sum(float(array.sum()) for array in request.adapter.values())
        return device(examples=node + 1, shift=np.sin(sum_ + node))(message)

    return answer


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(plan, tmp_path, strategy):
    """Moments included: the second half, by a new server, is that of a run that went through."""
    devices = {node: wandering(node) for node in range(3)}
    whole, _, _ = run(change(plan, rounds=4, strategy=strategy), devices)
    other = change(plan, checkpoint_path=tmp_path / "other.sqlite3", strategy=strategy)
    RoundCheckpoint(manifest_sha256=MANIFEST, round=0, adapter=INITIAL).save(other.checkpoint_path)
    run(change(other, rounds=2), devices)
    resumed, _, _ = run(change(other, rounds=4), devices)
    assert whole.adapter.keys() == resumed.adapter.keys()
    for name, array in whole.adapter.items():
        np.testing.assert_array_equal(array, resumed.adapter[name])
    for name, array in whole.strategy_state.items():
        np.testing.assert_array_equal(array, resumed.strategy_state[name])
    if strategy != "fedavg":
        forgetful = RoundCheckpoint.load(other.checkpoint_path, manifest_sha256=MANIFEST)
        assert forgetful.strategy_state  # the control: without it the next round is another one


def test_another_strategy_does_not_take_up_what_it_cannot_use(plan):
    run(change(plan, rounds=1, strategy="fedadam"), {1: device()})
    with pytest.raises(
        RoundCheckpointError, match=r"state of strategy fedadam.*--strategy fedadam"
    ):
        run(change(plan, rounds=2, strategy="fedavgm"), {1: device()})
    run(change(plan, rounds=2, strategy="fedadam"), {1: device()})


def test_what_the_strategy_tells_devices_is_in_the_request(plan):
    told = []

    def listening(message):
        if message.metadata.message_type == "train":
            told.append(TrainRequest.from_records(from_record_dict(message.content)).proximal_mu)
        return device()(message)

    run(change(plan, strategy="fedprox", strategy_options={"proximal_mu": "0.5"}), {1: listening})
    assert told == [0.5]


def test_a_round_ends_with_the_answers_that_it_wants(plan):
    """Over-selection: five are asked for three answers, and the silent two cost nothing."""
    devices = {node: device() for node in range(3)} | {3: silent, 4: silent}
    asked_for = change(plan, cohort_size=3, over_select=1.5, deadline_s=30.0, min_replies=3)
    start = time.monotonic()
    grid, log = MemoryGrid(devices), EventLog(plan.events_path)
    loop = RoundLoop(grid, asked_for, log)
    loop._evaluate = lambda state: None  # which would wait for the silent ones
    state = loop.run()
    log.close()
    assert state.round == 1
    assert time.monotonic() - start < 10
    events = EventReader(plan.events_path).read()
    finished = next(event for event in events if event.kind == "round_finished")
    assert (finished.devices, finished.asked) == (3, 5)


def test_a_busy_device_is_left_alone_while_others_suffice(plan):
    devices = {1: device(), 2: device(), 3: silent}
    _, _, grid = run(change(plan, rounds=3, cohort_size=2, over_select=1.5), devices)
    assert grid.asked[0] == [1, 2, 3]
    # the third is still at the first round; two are enough, and it makes the third of three
    assert [len(cohort) for cohort in grid.asked[:-1]] == [3, 3, 3]
    _, _, grid = run(change(plan, rounds=6, cohort_size=None, min_devices=2), devices)
    assert grid.asked[:-1] == [[1, 2, 3], [1, 2], [1, 2]]


def test_too_few_answers_repeat_the_round_and_then_end_the_run(plan):
    flaky = [failing, failing, device()]

    def recovering(message):
        train = message.metadata.message_type == "train"
        return (flaky.pop(0) if train and len(flaky) > 1 else device())(message)

    state, events, _ = run(change(plan, min_replies=2), {1: device(), 2: recovering})
    assert state.round == 1
    repeated = [event for event in events if event.kind == "round_repeated"]
    assert [event.reason for event in repeated] == ["1 of 2 answers that a round needs"] * 2
    with pytest.raises(NotEnoughDevicesError, match="in 3 attempts, each of which needs 2"):
        run(change(plan, rounds=2, min_replies=2), {1: device(), 2: failing})


def test_a_strategy_asks_for_as_many_answers_as_it_needs(plan):
    with pytest.raises(NotEnoughDevicesError, match="each of which needs 5"):
        run(change(plan, strategy="krum"), {node: device() for node in range(4)})


@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy": "fedavgm", "strategy_options": {"server_learning_rate": 5}},
        {"strategy": "fedadam"},
    ],
    ids=["adapter", "moments"],
)
def test_what_is_not_finite_is_never_saved(plan, strategy):
    """float32's largest numbers are finite; five times one is not, nor is its square."""
    wild = device(shift=3e38)
    with pytest.raises(NotEnoughDevicesError):
        run(change(plan, max_update_norm=1e300, **strategy), {1: wild, 2: wild})
    saved = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=MANIFEST)
    assert (saved.round, dict(saved.strategy_state)) == (0, {})
    reasons = [e.reason for e in EventReader(plan.events_path).read() if e.kind == "round_repeated"]
    assert len(reasons) == 3
    assert "not finite" in reasons[0]


def test_an_absurd_update_is_left_out_and_the_round_goes_on(plan):
    _, found, _ = run(change(plan, max_update_norm=100.0), {1: device(), 2: device(shift=1e3)})
    reasons = [event.reason for event in found if event.kind == "reply_refused"]
    told = "the update is 3873 long; at most 100 is taken (--max-update-norm)"
    assert set(reasons) == {told}
    devices = [event.devices for event in found if event.kind == "round_finished"]
    assert devices == [1] * plan.rounds


def test_only_selected_nodes_are_asked(plan):
    devices = {node: device() for node in range(6)}
    _, _, grid = run(change(plan, nodes=(1, 4, 77)), devices)
    assert grid.asked == [[1, 4], [1, 4]]
    with pytest.raises(NotEnoughDevicesError, match="1 devices that carry the selected tags"):
        run(change(plan, rounds=2, nodes=(1,), min_devices=2), devices)


def test_a_checkpoint_of_another_bundle_is_refused(plan):
    with pytest.raises(RoundCheckpointError, match="has no round of the bundle"):
        RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256="cd" * 32)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"\xff" * 8], ids=["empty", "zeros", "ones"]
)
def test_a_damaged_checkpoint_is_refused(plan, content):
    plan.checkpoint_path.write_bytes(content)
    with pytest.raises(
        RoundCheckpointError, match=r"cannot be used as the federation|has no round"
    ):
        RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=MANIFEST)


def test_a_plan_is_read_back_as_written(plan, tmp_path):
    files = {"evaluate_path": tmp_path / "x.npz", "feedback_path": tmp_path / "f.part"}
    asked = {"strategy": "krum", "strategy_options": {"num_malicious": 2}, "nodes": (3, 2**63)}
    for written in (plan, change(plan, **files, **asked, cohort_size=4)):
        written.save(tmp_path / "plan.json")
        assert FederationPlan.load(tmp_path / "plan.json") == written


def test_the_wait_between_two_looks_grows_with_the_round():
    grid = MemoryGrid({1: silent})
    now, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    messages = [Message(to_record_dict({}), 1, "train")]
    exchange = Exchange(grid, lifetime_s=200.0, clock=lambda: now[0], sleep=sleep)
    list(exchange.answers(exchange.ask(1, messages), deadline_s=100.0))
    assert waits[0] == 0.05
    assert max(waits) <= 1.0
    assert now[0] == pytest.approx(100.0)
    assert len(waits) < 400  # a fixed wait of 50 ms would look 2000 times


def test_means_of_nothing_are_nothing():
    assert weighted_means([]) == {}
