"""SCAFFOLD: the formulas of Karimireddy et al., and the drift that it takes away."""

import numpy as np
import pytest

from rootlet.controls import Controls
from rootlet.errors import RequestRefusedError
from rootlet_runtime import Bundle
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.control_variates import ControlVariates
from rootlet_runtime.fit import FitResult
from rootlet_server.errors import AggregationError, ServeConfigError
from rootlet_server.federation.strategies import Update, make_strategy

SIZE, STEPS, RATE = 6, 10, 0.1


class Quadratic:
    """A device whose loss is ``sum h (w - t)^2 / 2``, and that takes STEPS steps of SGD."""

    def __init__(self, rng):
        self.h, self.t = rng.uniform(0.2, 3, SIZE), rng.normal(size=SIZE)
        self.own = {"w": np.zeros(SIZE, np.float32)}

    def train(self, received, mean):
        """The trained adapter and what changed in the control variate."""
        control = ControlVariates(own=self.own, mean=mean)
        w = received["w"].copy()
        for _ in range(STEPS):
            w = (w - RATE * self.h * (w - self.t)).astype(np.float32)
            w = control.pulled({"w": w}, RATE)["w"]
        after = control.next_own(received, {"w": w})
        change = {"w": after["w"] - self.own["w"]}
        self.own = after
        return {"w": w}, change


def federated(strategy, rounds):
    """The last adapter, and the minimum of the mean of all losses."""
    rng = np.random.default_rng(3)
    devices = [Quadratic(rng) for _ in range(5)]
    best = sum(d.h * d.t for d in devices) / sum(d.h for d in devices)
    w = {"w": np.zeros(SIZE, np.float32)}
    for round_ in range(1, rounds + 1):
        mean = strategy.train_options.get("control") or {"w": np.zeros(SIZE, np.float32)}
        updates = []
        for node, device in enumerate(devices):
            trained, change = device.train(w, mean)
            updates.append(
                Update(node=node, received=w, trained=trained, num_examples=1, loss=0.0,
                       control=change)
            )  # fmt: skip
        w = strategy.aggregate(round_, w, updates)
    return w["w"], best


def test_devices_with_different_minima_meet_in_the_common_one():
    scaffold = make_strategy("scaffold", {"devices": 5}, learning_rate=RATE)
    found, best = federated(scaffold, 150)
    np.testing.assert_allclose(found, best, atol=1e-4)
    drifted, _ = federated(make_strategy("fedavg", {}, learning_rate=RATE), 150)
    assert np.abs(drifted - best).max() > 0.05  # several local steps pull FedAvg off it


def test_one_round_is_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    received = {"w": rng.normal(size=SIZE).astype(np.float32)}
    made = make_strategy("scaffold", {"devices": 10, "eta": 0.5}, learning_rate=RATE)
    updates = [
        Update(
            node=n, received=received, num_examples=n + 1, loss=0.0,
            trained={"w": rng.normal(size=SIZE).astype(np.float32)},
            control={"w": rng.normal(size=SIZE).astype(np.float32)},
        )
        for n in range(3)
    ]  # fmt: skip
    after = made.aggregate(1, received, updates)
    change = np.mean([u.trained["w"] - received["w"] for u in updates], axis=0)
    np.testing.assert_allclose(after["w"], received["w"] + 0.5 * change, rtol=1e-5)
    drift = np.sum([u.control["w"] for u in updates], axis=0) / 10
    np.testing.assert_allclose(made.state()["w"], drift, rtol=1e-5)
    again = make_strategy("scaffold", {"devices": 10}, learning_rate=RATE)
    again.restore(made.state(), received)
    np.testing.assert_array_equal(again.train_options["control"]["w"], made.state()["w"])


def test_an_answer_without_one_and_an_unknown_fleet_are_refused():
    with pytest.raises(ServeConfigError, match="devices is 0"):
        make_strategy("scaffold", {}, learning_rate=RATE)
    received = {"w": np.zeros(SIZE, np.float32)}
    made = make_strategy("scaffold", {"devices": 2}, learning_rate=RATE)
    answer = Update(node=7, received=received, trained=received, num_examples=1, loss=0.0)
    with pytest.raises(AggregationError, match="node 7 sent no control variate"):
        made.aggregate(1, received, [answer])


def result(**changes):
    given = {
        "steps": 1, "examples": 1, "loss": 0.0, "metric": 0.0, "seconds": 0.0, "energy": None,
        "ended_by": "steps", "resumed_from_step": 0,
    }  # fmt: skip
    return FitResult(**(given | changes))


def test_a_device_keeps_its_own_from_round_to_round(mlp_bundle, tmp_path):
    files = ArrayFiles(tmp_path)
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        adapter, manifest = bundle.initial_adapter(), bundle.manifest
        zero = {name: np.zeros_like(array) for name, array in adapter.items()}
        controls = Controls(files)
        control = controls.begin(zero, manifest)
        assert all(not array.any() for array in control.own.values())
        control.pulled(adapter, 0.5)
        trained = {name: array - 1 for name, array in adapter.items()}
        change = controls.finish(control, adapter, trained, result())
        for array in change.values():
            np.testing.assert_allclose(array, 2.0, rtol=1e-5)  # one unit by a rate of a half
        kept = Controls(files).begin(zero, manifest)
        for name, array in change.items():
            np.testing.assert_array_equal(kept.own[name], array)
        kept.pulled(adapter, 0.5)
        for unsure in ({"resumed_from_step": 3}, {"rolled_back": 1}):
            same = controls.finish(kept, adapter, trained, result(**unsure))
            assert all(not array.any() for array in same.values())
        with pytest.raises(RequestRefusedError, match="not of the adapter's shapes"):
            controls.begin({"w": np.zeros(3, np.float32)}, manifest)
