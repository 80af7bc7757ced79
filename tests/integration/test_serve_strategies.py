"""Strategies of `rootlet serve` over a real SuperLink: steps, attackers, tags."""

import contextlib
import threading
import time

import numpy as np
import pytest

from rootlet import DeviceClient, ParticipationPolicy
from rootlet.data import ArrayData
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.envelope import Answer
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.session import FleetSession
from rootlet.protocol import EvaluateReply, TrainReply, TrainRequest
from rootlet_runtime import Bundle
from rootlet_server import ServeConfig, serve

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # flwr's, building an app

ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, idle=False)


class Slow(ArrayData):
    """Examples that take their time in every round."""

    seconds = 1.5

    def train(self):
        time.sleep(self.seconds)
        return super().train()


class Attacker:
    """Answers a `train` request with what it received, times minus twenty and moved."""

    def answer(self, request, *, should_stop):
        if request.message_type != "train":
            reply = EvaluateReply(metric="accuracy", num_examples=1, loss=0.0, received=1.0)
            return Answer(reply.to_records())
        asked = TrainRequest.from_records(request.records)
        reply = TrainReply(
            adapter={n: -20 * a + np.float32(5) for n, a in asked.adapter.items()},
            metric="accuracy", num_examples=10**6, loss=0.0, received=1.0, trained=1.0,
            train_s=0.0, energy_estimated_j=0.0, bytes_down=1, bytes_up=1,
        )  # fmt: skip
        return Answer(reply.to_records())


@pytest.fixture
def federation(mlp_bundle, tmp_path):
    """`federation(devices=…, **settings)`: events and result of a served federation."""
    with contextlib.ExitStack() as stack:

        def join(address, count, slow, keys, certificate):
            for number in range(count):
                bundle = stack.enter_context(
                    Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys)
                )
                mine = slice(number, None, count)
                kind = Slow if number < slow else ArrayData
                device = DeviceClient(
                    bundle,
                    tmp_path / f"device{len(list(tmp_path.iterdir()))}",
                    policy=ANY_TIME,
                    data=kind.split((mlp_bundle.x[mine], mlp_bundle.y[mine])),
                )
                stack.callback(device.close, 1.0)
                device.join(address, certificate, keys[number] if keys else None)

        def attack(address):
            stop = threading.Event()
            connection = FleetConnection(address, sleep=stop.wait)
            session = FleetSession(connection, Attacker())
            thread = threading.Thread(target=session.run, args=(stop,), daemon=True)
            thread.start()
            stack.callback(thread.join, 30)
            stack.callback(stop.set)

        def run(*, devices, slow=0, attackers=0, keys=(), **settings):
            events = []

            def hear(event):
                events.append(event)
                if event.kind == "listening":
                    secure = event.root_certificate
                    address = event.address if secure else f"http://{event.address}"
                    join(address, devices, slow, keys, secure)
                    for _ in range(attackers):
                        attack(address)

            result = serve(
                ServeConfig(
                    **{
                        "bundle": mlp_bundle.path,
                        "trusted_keys": tuple(mlp_bundle.trusted_keys),
                        "signing_key": mlp_bundle.signing_key_path,
                        "state_dir": tmp_path / "state",
                        "epochs": 2,
                        "learning_rate": 0.02,
                        "wait_s": 60.0,
                        "deadline_s": 60.0,
                        "min_devices": devices + attackers,
                    }
                    | settings
                ),
                hear,
            )
            return events, result

        yield run


def accuracies(events):
    return [
        e.means["accuracy_received"] for e in events if e.kind in {"round_finished", "evaluated"}
    ]


def test_the_server_steps_by_adam(federation):
    events, result = federation(
        devices=3, rounds=5, strategy="fedadam", strategy_options={"eta": 0.1}
    )
    assert [event.devices for event in result.rounds] == [3] * 5
    found = accuracies(events)
    assert found[-1] > found[0] + 0.3


def test_devices_keep_control_variates(federation, tmp_path):
    """SCAFFOLD over a real SuperLink: the last adapters are better, and each device remembers."""
    _, result = federation(
        devices=3, rounds=4, strategy="scaffold", strategy_options={"devices": 3}
    )
    assert [event.devices for event in result.rounds] == [3] * 4
    received = [event.means["accuracy_received"] for event in result.rounds]
    assert received[-1] > received[0] + 0.1
    assert len(list(tmp_path.rglob("control.arrays"))) == 3


def test_krum_withstands_an_attacker_that_ruins_the_mean(federation, tmp_path):
    """Four honest devices and one that answers -20 times what it got, by a million examples."""
    everybody = {"devices": 4, "attackers": 1, "rounds": 3}
    events, _ = federation(**everybody, strategy="krum")
    honest = [
        e.metrics["accuracy_received"] for e in events
        if e.kind == "reply" and e.phase == "evaluate" and e.metrics["num-examples"] > 1
    ]  # fmt: skip
    first = [
        e.metrics["accuracy_received"] for e in events
        if e.kind == "reply" and e.phase == "train" and e.round == 1 and e.metrics["train_s"] > 0
    ]  # fmt: skip
    assert np.mean(honest) > np.mean(first) + 0.2


def test_the_mean_is_ruined_by_that_attacker(federation):
    """The control of the test above."""
    events, _ = federation(devices=4, attackers=1, rounds=3, strategy="fedavg")
    honest = [
        e.metrics["accuracy_received"] for e in events
        if e.kind == "reply" and e.phase == "evaluate" and e.metrics["num-examples"] > 1
    ]  # fmt: skip
    assert np.mean(honest) < 0.3


def test_only_devices_with_the_selected_tag_are_asked(federation, tmp_path):
    keys = [NodeKey.generate() for _ in range(3)]
    (tmp_path / "keys").mkdir()
    for number, key in enumerate(keys):
        (tmp_path / "keys" / f"{number}.pub").write_bytes(key.public_pem)
    (tmp_path / "tags.toml").write_text('fast = ["0.pub", "2.pub"]\nall = ["0.pub"]\n')
    events, result = federation(
        devices=3, keys=keys, rounds=2, min_devices=2, tls="auto", host="127.0.0.2",
        node_keys=tmp_path / "keys", tags=tmp_path / "tags.toml", select=("fast",),
    )  # fmt: skip
    assert [(event.devices, event.asked) for event in result.rounds] == [(2, 2)] * 2
    assert len({node for e in events if e.kind == "round_started" for node in e.cohort}) == 2
    assert result.evaluated.devices == 2


def test_devices_that_train_all_the_time_do_not_wait_for_the_slowest(federation):
    """FedBuff over a real SuperLink: the two quick devices make versions while one sleeps."""
    events, result = federation(
        devices=4, slow=1, rounds=6, strategy="fedbuff",
        strategy_options={"buffer_size": 2, "max_staleness": 20},
    )  # fmt: skip
    assert [event.round for event in result.rounds] == [1, 2, 3, 4, 5, 6]
    assert all(event.devices == 2 for event in result.rounds)
    found = accuracies(events)
    assert found[-1] > found[0] + 0.3
    begun = [event for event in events if event.kind == "round_started"]
    assert len(begun) >= 3  # devices are asked as they come free, not in one cohort
    assert any(event.staleness > 0 for event in events if event.kind == "reply")


def test_updates_in_eight_bits_learn_the_same(federation):
    _, plain = federation(devices=3, rounds=1)
    events, small = federation(devices=3, rounds=4, compression="int8")
    assert small.rounds[-1].bytes_up < 0.5 * plain.rounds[-1].bytes_up
    found = accuracies(events)
    assert found[-1] > found[0] + 0.3


def test_a_round_does_not_wait_for_the_slowest(federation):
    """Three are asked for two answers: none of the rounds has the one that sleeps 1.5 s."""
    _, result = federation(
        devices=3, slow=1, rounds=2, cohort_size=2, over_select=1.5, min_replies=2
    )
    assert [event.devices for event in result.rounds] == [2, 2]
    assert result.rounds[0].asked == 3
    assert result.rounds[0].seconds < Slow.seconds
