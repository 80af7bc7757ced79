"""The client's own learning: beside the app, under the policy, and whole after any end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from rootlet import DeviceClient, DeviceConditions, ParticipationPolicy, TrainConfig
from rootlet.errors import ConfigError, NotNowError, StateError
from rootlet_runtime import Bundle, publish
from rootlet_runtime.errors import CheckpointError, DataError, RollbackError, TrainingError
from rootlet_runtime.manifest import Manifest

GOOD = DeviceConditions(charging=True, battery_level=1.0, unmetered=True, idle=True)
WAIT_S = 30.0


class Conditions:
    """Conditions that a test changes; counts how often they were read."""

    def __init__(self) -> None:
        self.now, self.reads = GOOD, 0

    def __call__(self) -> DeviceConditions:
        self.reads += 1
        return self.now

    def unplug(self) -> None:
        self.now = replace(GOOD, charging=False)

    def plug(self) -> None:
        self.now = GOOD


@pytest.fixture
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as loaded:
        yield loaded


@pytest.fixture
def conditions():
    return Conditions()


@pytest.fixture
def open_client(bundle, conditions, tmp_path):
    clients = []

    def open_(bundle=bundle, **options):
        options = {"conditions": conditions, "recheck_s": 0.0} | options
        clients.append(DeviceClient(bundle, tmp_path / "state", **options))
        return clients[-1]

    yield open_
    for client in clients:
        client.close()


@pytest.fixture
def observe(mlp_bundle):
    def observe_(client, count=40):
        for x, y in zip(mlp_bundle.x[:count], mlp_bundle.y[:count], strict=True):
            client.observe(x, y)

    return observe_


def eventually(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_training_changes_what_the_client_predicts(open_client, observe, mlp_bundle):
    client = open_client(train=TrainConfig(epochs=3))
    observe(client)
    before = client.predict(mlp_bundle.x[:8])
    result = client.train_locally()
    assert not result.stopped
    assert result.examples == 3 * 32  # one example of five is held out
    after = client.predict(mlp_bundle.x[:8])
    assert after.shape == before.shape
    assert np.abs(after - before).max() > 0


def test_ragged_rows_are_a_data_error(open_client):
    client = open_client()
    ragged = [[0.0], [0.0, 1.0]]
    with pytest.raises(DataError, match="x: not an array"):
        client.predict(ragged)
    with pytest.raises(DataError, match="label: not an array"):
        client.observe(np.zeros(64, np.float32), ragged)


def test_closing_keeps_the_state_locked_until_a_training_has_ended(open_client, observe):
    client = open_client()
    observe(client)
    in_step, release = threading.Event(), threading.Event()

    def hang(_progress):
        in_step.set()
        release.wait(WAIT_S)

    app = threading.Thread(target=lambda: client.train_locally(hang))
    app.start()
    in_step.wait(WAIT_S)
    client.close(timeout_s=0.1)
    with pytest.raises(StateError, match="in use"):
        open_client()  # the training has yet to write its checkpoint there
    release.set()
    app.join(WAIT_S)

    def unlocked():
        with contextlib.suppress(StateError):
            return open_client()

    eventually(unlocked)


def test_one_input_gives_one_output(open_client, mlp_bundle):
    client = open_client()
    one, many = client.predict(mlp_bundle.x[0]), client.predict(mlp_bundle.x[:1])
    assert many.shape == (1, *one.shape)
    np.testing.assert_array_equal(one, many[0])


def test_the_app_observes_and_predicts_while_a_training_step_hangs(
    open_client, observe, mlp_bundle
):
    client = open_client(train=TrainConfig(epochs=2))
    observe(client)
    before = client.predict(mlp_bundle.x[:4])
    in_step, release = threading.Event(), threading.Event()

    def hang(_progress):
        in_step.set()
        assert release.wait(WAIT_S)

    future = client.train_locally(hang, wait=False)
    assert in_step.wait(WAIT_S)
    # The training cannot go on; everything below returns without it.
    client.observe(mlp_bundle.x[50], mlp_bundle.y[50])
    assert client.status.examples == 41
    np.testing.assert_array_equal(client.predict(mlp_bundle.x[:4]), before)
    assert not future.done()
    release.set()
    future.result(WAIT_S)
    assert np.abs(client.predict(mlp_bundle.x[:4]) - before).max() > 0


def test_training_runs_at_low_priority_in_a_daemon_thread(open_client, observe):
    client = open_client()
    observe(client)
    seen, before = [], os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def look(_progress):
        thread = threading.current_thread()
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        seen.append((thread.daemon, nice))

    client.train_locally(look)
    assert seen[0] == (True, 10)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_policy_that_turns_stops_training_and_it_goes_on_where_it_stopped(
    open_client, observe, conditions, mlp_bundle
):
    client = open_client(train=TrainConfig(epochs=4, batch_size=4))
    observe(client)
    before = client.predict(mlp_bundle.x)
    seen = []

    def unplug_at_five(progress):
        seen.append(progress.step)
        if progress.step == 5:
            conditions.unplug()

    with pytest.raises(NotNowError, match=r"not charging.*wait=False"):
        client.train_locally(unplug_at_five)
    assert seen == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)
    with pytest.raises(NotNowError):
        client.train_locally()
    conditions.plug()
    result = client.train_locally()
    assert (result.resumed_from_step, result.steps, result.stopped) == (5, 32, False)


def test_training_in_the_background_waits_for_the_policy(open_client, observe, conditions):
    client = open_client(train=TrainConfig(epochs=4, batch_size=4), recheck_s=0.01)
    observe(client)
    conditions.unplug()
    steps = []

    def unplug_at_five(progress):
        steps.append(progress.step)
        if progress.step == 5:
            conditions.unplug()
            reads.append(conditions.reads)
            time.sleep(0.05)  # the last reading of the conditions expires

    reads = [conditions.reads]
    future = client.train_locally(unplug_at_five, wait=False)
    eventually(lambda: conditions.reads > reads[0] + 3)
    assert steps == []
    conditions.plug()
    eventually(lambda: len(reads) == 2 and conditions.reads > reads[1] + 3)
    stopped_at = len(steps)
    assert not future.done()
    conditions.plug()
    result = future.result(WAIT_S)
    assert result.steps == 32
    assert result.resumed_from_step == stopped_at


def test_neither_network_nor_rounds_matter_to_local_training(open_client, observe, conditions):
    client = open_client()
    observe(client)
    conditions.now = replace(GOOD, unmetered=False)
    assert not client.train_locally().stopped


def test_an_app_that_stops_a_training_keeps_the_adapter_from_before(
    open_client, observe, mlp_bundle
):
    client = open_client(train=TrainConfig(epochs=5))
    observe(client)
    before = client.predict(mlp_bundle.x)
    assert client.train_locally(lambda progress: progress.step < 2).stopped
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)


def test_an_app_whose_progress_fails_keeps_the_adapter_from_before(
    open_client, observe, mlp_bundle
):
    client = open_client(train=TrainConfig(epochs=5))
    observe(client)
    before = client.predict(mlp_bundle.x)

    def fail(_progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.train_locally(fail)
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)
    assert client.train_locally().resumed_from_step == 0


def test_a_training_that_diverges_keeps_the_adapter_from_before(open_client, observe, mlp_bundle):
    client = open_client(train=TrainConfig(epochs=5, learning_rate=3e38))
    observe(client)
    before = client.predict(mlp_bundle.x)
    with pytest.raises(TrainingError):
        client.train_locally()
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)


def test_without_examples_there_is_nothing_to_train_on(open_client):
    with pytest.raises(NotNowError, match="no examples yet"):
        open_client().train_locally()


@pytest.mark.parametrize("failing", [None, "raises"])
def test_a_device_that_can_tell_nothing_does_not_train(open_client, observe, failing):
    def unknown():
        if failing:
            raise OSError("no such sensor")
        return DeviceConditions()

    client = open_client(conditions=unknown)
    observe(client)
    with pytest.raises(NotNowError, match="charging is unknown"):
        client.train_locally()


def test_what_was_learnt_and_observed_outlives_the_client(open_client, observe, mlp_bundle):
    first = open_client()
    observe(first)
    first.train_locally()
    learnt = first.predict(mlp_bundle.x)
    first.close()
    second = open_client()
    np.testing.assert_array_equal(second.predict(mlp_bundle.x), learnt)
    assert second.status.examples == 40


def test_erasing_leaves_no_example(open_client, observe):
    client = open_client()
    observe(client)
    client.erase()
    assert client.status.examples == 0


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from rootlet import DeviceClient, ParticipationPolicy, TrainConfig
from rootlet_runtime import Bundle, load_public_key

path, key, data, state = sys.argv[1:]
bundle = Bundle.load(path, trusted_keys=[load_public_key(key)])
policy = ParticipationPolicy(charging=False, unmetered=False, battery_above=0.0)
client = DeviceClient(bundle, state, policy=policy, train=TrainConfig(epochs=1, batch_size=1))
arrays = np.load(data)
for x, y in zip(arrays["x"], arrays["y"]):
    client.observe(x, y)
client.train_locally()
np.save(Path(state) / "learnt.npy", client.predict(arrays["x"]))
client.close()
client = DeviceClient(bundle, state, policy=policy, train=TrainConfig(epochs=100000, batch_size=1))

def report(progress):
    if progress.step == 60:
        print("training", flush=True)

client.train_locally(report)
"""


def test_a_process_killed_while_training_loses_neither_adapter_nor_examples(
    open_client, mlp_bundle, tmp_path
):
    (tmp_path / "state").mkdir()
    np.savez(tmp_path / "data.npz", x=mlp_bundle.x[:20], y=mlp_bundle.y[:20])
    arguments = (
        mlp_bundle.path,
        mlp_bundle.public_key_path,
        tmp_path / "data.npz",
        tmp_path / "state",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "training\n"
        process.send_signal(signal.SIGKILL)
    client = open_client()
    learnt = np.load(tmp_path / "state" / "learnt.npy")
    np.testing.assert_array_equal(client.predict(mlp_bundle.x[:20]), learnt)
    assert client.status.examples == 20
    assert not client.train_locally().stopped


def test_an_older_bundle_is_refused(open_client, bundle, mlp_bundle, tmp_path):
    newer_path = tmp_path / "newer.rootlet"
    publish(
        bundle, newer_path, signing_key=mlp_bundle.signing_key, version=bundle.manifest.version + 1
    )
    with Bundle.load(newer_path, trusted_keys=mlp_bundle.trusted_keys) as newer:
        open_client(newer).close()
        with pytest.raises(RollbackError, match="which this device has accepted"):
            open_client(bundle)
        open_client(newer).close()  # the refusal left no lock behind


def test_a_newer_bundle_starts_from_its_own_adapter_and_keeps_the_examples(
    open_client, observe, bundle, mlp_bundle, tmp_path
):
    client = open_client()
    observe(client)
    untrained = client.predict(mlp_bundle.x)
    client.train_locally()
    client.close()
    publish(
        bundle,
        tmp_path / "newer.rootlet",
        signing_key=mlp_bundle.signing_key,
        version=bundle.manifest.version + 1,
    )
    keys = mlp_bundle.trusted_keys
    with Bundle.load(tmp_path / "newer.rootlet", trusted_keys=keys) as newer:
        client = open_client(newer)
        np.testing.assert_array_equal(client.predict(mlp_bundle.x), untrained)
        assert client.status.examples == 40
        client.close()


def test_a_damaged_checkpoint_costs_what_was_learnt_but_not_the_app(
    open_client, observe, bundle, mlp_bundle, tmp_path, caplog
):
    client = open_client()
    untrained = client.predict(mlp_bundle.x)
    observe(client)
    client.train_locally()
    client.close()
    for path in (tmp_path / "state").glob("adapter-*/*.safetensors"):
        path.write_bytes(b"damaged")
    client = open_client()
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), untrained)
    assert "starts anew" in caplog.text


def test_a_full_disk_after_a_training_is_an_error_and_keeps_the_adapter_from_before(
    open_client, observe, mlp_bundle, monkeypatch
):
    client = open_client()
    observe(client)
    before = client.predict(mlp_bundle.x)

    def refuse(_folder):
        raise CheckpointError("no space left")

    monkeypatch.setattr(client._learner.trainer, "save", refuse)
    with pytest.raises(CheckpointError):
        client.train_locally()
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)


def test_two_clients_of_one_state_directory_are_refused(open_client):
    open_client()
    with pytest.raises(StateError, match="in use"):
        open_client()


def test_a_closed_client_does_nothing_more(open_client, mlp_bundle):
    client = open_client()
    client.close()
    client.close()
    assert client.status.state == "closed"
    for call in (
        lambda: client.observe(mlp_bundle.x[0], mlp_bundle.y[0]),
        client.train_locally,
        lambda: client.join("127.0.0.1:1"),
    ):
        with pytest.raises(StateError, match="closed"):
            call()


def test_closing_ends_a_training_in_the_background(open_client, observe):
    client = open_client(train=TrainConfig(epochs=100_000))
    observe(client)
    started = threading.Event()
    future = client.train_locally(lambda _progress: started.set(), wait=False)
    assert started.wait(WAIT_S)
    client.close()
    assert future.result(WAIT_S).stopped
    open_client().close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_example_with_impossible_values_is_refused(open_client, mlp_bundle, value):
    x = np.full_like(mlp_bundle.x[0], value)
    client = open_client()
    with pytest.raises(DataError, match="NaN or infinite"):
        client.observe(x, mlp_bundle.y[0])
    assert client.status.examples == 0


def test_a_label_out_of_range_is_refused(open_client, bundle, mlp_bundle):
    with pytest.raises(DataError, match="label"):
        open_client().observe(mlp_bundle.x[0], bundle.manifest.num_outputs)


def test_a_client_with_its_own_data_source_observes_nothing(open_client, mlp_bundle):
    class Source:
        def train(self):
            return mlp_bundle.x[:16], mlp_bundle.y[:16]

        def holdout(self):
            return None

    client = open_client(data=Source())
    with pytest.raises(StateError, match="data"):
        client.observe(mlp_bundle.x[0], mlp_bundle.y[0])
    assert not client.train_locally().stopped


def test_a_batch_beyond_the_bundle_is_refused(open_client, bundle):
    limit = bundle.manifest.max_batch
    with pytest.raises(ConfigError, match=f"at most {limit}"):
        open_client(train=TrainConfig(batch_size=limit + 1))


@pytest.mark.parametrize(
    "values",
    [{"epochs": 0}, {"batch_size": 0}, {"num_threads": 0}, {"learning_rate": 0.0},
     {"learning_rate": float("nan")}],
)  # fmt: skip
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig(**values)


def test_settings_fall_back_to_the_bundle_s(bundle: Bundle):
    manifest: Manifest = bundle.manifest
    assert TrainConfig().resolved(manifest.training) == manifest.training
    assert TrainConfig(epochs=7).resolved(manifest.training).epochs == 7
    assert TrainConfig(epochs=7).limits().epochs == 7


def test_the_policy_is_frozen():
    with pytest.raises(AttributeError):
        ParticipationPolicy().charging = False
