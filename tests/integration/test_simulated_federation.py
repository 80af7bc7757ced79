"""A small federation over a real SuperLink, and the same one simulated: equal adapters."""

import contextlib
import random
from types import SimpleNamespace

import numpy as np
import pytest

from rootlet.participant import Participant
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.trainer import Trainer
from rootlet_server.federation import ServeConfig, serve
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.events import EventLog
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.rounds import RoundLoop
from rootlet_server.simulation import LocalTraining, by_user, simulate
from rootlet_server.simulation.batching import client_seeds
from rootlet_server.simulation.crews import OwnCrew
from rootlet_server.simulation.fleet import Fleet
from rootlet_server.simulation.grid import VectorGrid
from rootlet_server.simulation.population import fit_to_bundle
from rootlet_server.simulation.replies import in_a_run
from rootlet_server.simulation.work import Job, Worker

DEVICES, ROUNDS, SEED, EXAMPLES = 3, 2, 11, 150
TRAINING = LocalTraining(epochs=2, batch_size=16, learning_rate=0.05)
# Averages of three float32 adapters in another order: a few units in the last place a round, and
# what a step of SGD makes of them.
CLOSE = 1e-5


class Examples:
    """One client's examples, all of them to train on."""

    def __init__(self, examples):
        self._examples = examples

    def train(self):
        return self._examples

    def holdout(self):
        return None


class SeedOfEachRound:
    """Gives the numbers that the simulated client draws, round after round."""

    def __init__(self, client):
        self._seeds = iter(client_seeds(SEED, number, [client])[0] for number in (1, 2, 3))

    def integers(self, _):
        return next(self._seeds)


def clients_of(float_bundle):
    users = np.repeat(np.arange(DEVICES), [30, 50, 70])
    return by_user(float_bundle.x[:EXAMPLES], float_bundle.y[:EXAMPLES], users)


def check_close(found, expected, start):
    assert max(np.abs(expected[name] - start[name]).max() for name in start) > 1e-2
    for name in start:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=CLOSE)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr's own use
def test_a_federation_over_a_superlink_is_the_simulated_one(float_bundle, start_device, tmp_path):
    population = clients_of(float_bundle)

    def on_event(event):
        if event.kind != "listening":
            return
        link = SimpleNamespace(address=event.address, root_certificate=None)
        for client in range(DEVICES):
            bundle = Bundle.load(float_bundle.path, trusted_keys=float_bundle.trusted_keys)
            data = Examples(population.examples(client))
            participant = Participant(Trainer(bundle), data, rng=SeedOfEachRound(client))
            start_device(link, None, participant, linger_s=1.0)  # the server will be gone

    served = serve(
        ServeConfig(
            bundle=float_bundle.path, trusted_keys=tuple(float_bundle.trusted_keys),
            signing_key=float_bundle.signing_key_path, state_dir=tmp_path / "state", rounds=ROUNDS,
            min_devices=DEVICES, epochs=TRAINING.epochs, batch_size=TRAINING.batch_size,
            learning_rate=TRAINING.learning_rate, wait_s=120.0, deadline_s=120.0,
        ),
        on_event,
    )  # fmt: skip
    with (
        Bundle.load(float_bundle.path, trusted_keys=float_bundle.trusted_keys) as bundle,
        Bundle.load(served.bundle, trusted_keys=float_bundle.trusted_keys) as improved,
    ):
        simulated = simulate(
            bundle, population, rounds=ROUNDS, seed=SEED, training=TRAINING, chunk_size=2
        )
        check_close(simulated.adapter, improved.initial_adapter(), bundle.initial_adapter())


def test_the_servers_own_round_loop_runs_on_the_simulated_grid(float_bundle, tmp_path):
    with Bundle.load(float_bundle.path, trusted_keys=float_bundle.trusted_keys) as bundle:
        population = fit_to_bundle(clients_of(float_bundle), bundle.manifest)
        job = Job(bundle=bundle.path, population=population, seed=SEED, vectorise=True)
        fleet = Fleet(
            bundle=bundle, population=population, crew=OwnCrew(Worker(job)), training=TRAINING,
            chunk_size=2,
        )  # fmt: skip
        plan = FederationPlan(
            bundle=bundle.manifest.name, bundle_version=bundle.manifest.version,
            manifest_sha256=bundle.manifest_sha256, task="classification", rounds=ROUNDS,
            min_devices=DEVICES, cohort_size=None, epochs=TRAINING.epochs,
            batch_size=TRAINING.batch_size, learning_rate=TRAINING.learning_rate,
            deadline_s=60.0, wait_s=60.0, max_examples=1000,
            checkpoint_path=tmp_path / "federation.sqlite3", events_path=tmp_path / "events.jsonl",
            bundle_path=float_bundle.path, trusted_keys=(),
        )  # fmt: skip
        RoundCheckpoint(
            manifest_sha256=bundle.manifest_sha256, round=0, adapter=bundle.initial_adapter()
        ).save(plan.checkpoint_path)
        everybody = random.Random(1)  # noqa: S311 (all are asked, in whatever order)
        with in_a_run(), contextlib.closing(EventLog(plan.events_path)) as log:
            end = RoundLoop(VectorGrid(fleet), plan, log, rng=everybody).run()
        simulated = simulate(bundle, clients_of(float_bundle), rounds=ROUNDS, seed=SEED,
                             training=TRAINING, chunk_size=2)  # fmt: skip
        check_close(end.adapter, simulated.adapter, bundle.initial_adapter())
