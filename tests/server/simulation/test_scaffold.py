"""SCAFFOLD over clients that remember, held to devices that do."""

import numpy as np
import pytest
from flwr.serverapp import ServerApp

from rootlet_server.errors import PreAggregationError, SimulationConfigError
from rootlet_server.simulation import Pace, Scaffold, run_server_app, simulate
from rootlet_server.simulation.batching import client_seeds


@pytest.fixture
def bundle(exact_bundle):
    return exact_bundle


@pytest.fixture
def run(bundle, population, training):
    """`run(**changes)`: rounds of everybody, in chunks of 5."""

    def start(strategy=None, **changes):
        options = {"rounds": 2, "seed": 9, "training": training, "chunk_size": 5} | changes
        return simulate(bundle, population, strategy, **options)

    return start


def scaffold(devices=12):
    return Scaffold(
        devices=devices, fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1,
        min_available_nodes=1,
    )  # fmt: skip


def scaffold_by_devices(bundle, population, training, seed, rounds):
    """SCAFFOLD of `rootlet serve` over devices that keep their control variates."""
    from rootlet.controls import Controls
    from rootlet_runtime.schedule import ROUND
    from rootlet_runtime.trainer import Trainer
    from rootlet_server.federation.strategies.scaffold import Scaffold as Rule
    from rootlet_server.federation.strategies.strategy import Update
    from rootlet_server.simulation.device_engine import Drawn

    trainer, adapter = Trainer(bundle), bundle.initial_adapter()
    rule = Rule(devices=len(population)).start(learning_rate=1.0)
    kept = [Controls() for _ in range(len(population))]
    for round_ in range(1, rounds + 1):
        mean = rule.train_options["control"] or {n: np.zeros_like(v) for n, v in adapter.items()}
        updates = []
        for client, drawn in enumerate(client_seeds(seed, round_, range(len(population)))):
            x, y = population.examples(client)
            control = kept[client].begin(mean, bundle.manifest)
            trainer.load_adapter(adapter)
            result = trainer.fit(
                x, y, epochs=training.epochs, batch_size=training.batch_size,
                learning_rate=training.learning_rate, rng=Drawn(drawn), schedule=ROUND,
                elastic=control,
            )  # fmt: skip
            trained = trainer.adapter
            drift = kept[client].finish(control, adapter, trained, result)
            updates.append(
                Update(
                    node=client, received=adapter, trained=trained, num_examples=len(x),
                    loss=result.loss, control=drift,
                )
            )  # fmt: skip
        adapter = rule.aggregate(round_, adapter, updates)
    return adapter


def test_scaffold_is_that_of_devices_which_remember(run, bundle, population, training):
    found = run(strategy=scaffold(), rounds=3)
    expected = scaffold_by_devices(bundle, population, training, 9, 3)
    plain = run(rounds=3)
    for name, value in expected.items():
        moved = np.abs(value - bundle.initial_adapter()[name]).max()
        np.testing.assert_allclose(found.adapter[name], value, atol=1e-4 * moved)
        assert np.abs(found.adapter[name] - plain.adapter[name]).max() > 1e-2 * moved


def test_scaffold_goes_on_where_it_was_interrupted(run, tmp_path):
    whole = run(strategy=scaffold(), rounds=3)
    run(strategy=scaffold(), rounds=2, state_dir=tmp_path)
    again = run(strategy=scaffold(), rounds=3, state_dir=tmp_path)
    for name, value in whole.adapter.items():
        np.testing.assert_array_equal(again.adapter[name], value)


def test_scaffold_is_refused_where_nothing_could_be_kept_or_corrected(
    run, bundle, population, training
):
    with pytest.raises(SimulationConfigError, match="buffer_size does not"):
        run(strategy=scaffold(), pace=Pace(buffer_size=3), cohort_size=5)
    with pytest.raises(PreAggregationError, match="Scaffold may read every client's own"):
        run(strategy=scaffold(), pre_aggregate=True)

    app = ServerApp()

    @app.main()
    def main(grid, context):
        from flwr.app import Array, ArrayRecord

        initial = ArrayRecord({n: Array(v) for n, v in bundle.initial_adapter().items()})
        scaffold().start(grid, initial, num_rounds=1)

    with pytest.raises(SimulationConfigError, match="these clients keep none"):
        run_server_app(app, bundle, population, seed=9, training=training)
