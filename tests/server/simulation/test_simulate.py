"""Whole simulations on small clients: what they compute, that they repeat, that they go on."""

import numpy as np
import pytest
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

from rootlet_server.errors import (
    PopulationError,
    PreAggregationError,
    SimulationConfigError,
    SimulationStateError,
    WorkerError,
)
from rootlet_server.simulation import (
    DevicePrivacy,
    Diurnal,
    Latency,
    LazyPopulation,
    LocalTraining,
    Pace,
    Progress,
    SecureAggregation,
    run_server_app,
    simulate,
)
from rootlet_server.simulation.batching import client_seeds
from rootlet_server.simulation.population import ArrayPopulation
from rootlet_server.simulation.result import read_clients, read_rounds


@pytest.fixture
def bundle(exact_bundle):
    return exact_bundle


@pytest.fixture
def run(bundle, population, training):
    """`run(**changes)`: two rounds of everybody, in chunks of 5."""

    def start(clients=None, strategy=None, **changes):
        options = {"rounds": 2, "seed": 9, "training": training, "chunk_size": 5} | changes
        return simulate(bundle, clients or population, strategy, **options)

    return start


def adam():
    return FedAdam(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1
    )


def median():
    return FedMedian(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1
    )


def check_same(one, other, atol=0.0):
    for name in one.adapter:
        np.testing.assert_allclose(one.adapter[name], other.adapter[name], rtol=0, atol=atol)


def expected_mean(bundle, population, training, seed):
    """Two rounds of federated averaging by devices, one client after the other."""
    from rootlet_runtime.schedule import ROUND
    from rootlet_runtime.trainer import Trainer
    from rootlet_server.simulation.device_engine import Drawn

    trainer, adapter = Trainer(bundle), bundle.initial_adapter()
    for round_ in (1, 2):
        seeds = client_seeds(seed, round_, range(len(population)))
        total, weight = dict.fromkeys(adapter, 0.0), 0
        for client, drawn in enumerate(seeds):
            x, y = population.examples(client)
            trainer.load_adapter(adapter)
            trainer.fit(
                x, y, epochs=training.epochs, batch_size=training.batch_size,
                learning_rate=training.learning_rate, rng=Drawn(drawn), schedule=ROUND,
            )  # fmt: skip
            total = {n: total[n] + len(x) * np.float64(v) for n, v in trainer.adapter.items()}
            weight += len(x)
        adapter = {n: (v / weight).astype(np.float32) for n, v in total.items()}
    return adapter


def test_two_rounds_are_those_of_devices(run, bundle, population, training, test_examples):
    expected = expected_mean(bundle, population, training, 9)
    found = run(test=test_examples)
    for name, value in expected.items():
        np.testing.assert_allclose(found.adapter[name], value, rtol=0, atol=1e-5)
    assert [each.ok for each in found.rounds] == [0, 12, 12]
    assert found.rounds[2].central_metric > found.rounds[0].central_metric
    assert found.clients["client"].tolist() == list(range(12)) * 2


def test_one_reply_a_client_and_averages_of_chunks_are_the_same(run):
    """The two round a mean of 12 float32 numbers differently, by less than 12 x 2^-24."""
    check_same(run(pre_aggregate=True), run(pre_aggregate=False), atol=1e-6)
    check_same(run(strategy=adam(), pre_aggregate=True), run(strategy=adam(), pre_aggregate=False),
               atol=1e-4)  # fmt: skip


def test_the_size_of_chunks_changes_rounding_only(run):
    check_same(run(chunk_size=1), run(chunk_size=12), atol=2e-6)


def test_a_server_app_runs_unchanged(bundle, population, training, run):
    app, found = ServerApp(), []

    @app.main()
    def main(grid, context):
        from flwr.app import ArrayRecord, ConfigRecord

        start = ArrayRecord({n: Array(v) for n, v in bundle.initial_adapter().items()})
        strategy = FedAvg(fraction_evaluate=1.0)
        config = ConfigRecord({"epochs": training.epochs})
        found.append(strategy.start(grid, start, num_rounds=2, train_config=config))
        context.state["done"] = ConfigRecord({"rounds": 2})

    from flwr.app import Array

    context = run_server_app(app, bundle, population, seed=9, training=training)
    assert context.state["done"]["rounds"] == 2
    expected = run(pre_aggregate=False, chunk_size=12)
    for name, array in found[0].arrays.items():
        np.testing.assert_allclose(array.numpy(), expected.adapter[name], rtol=0, atol=2e-6)
    assert 0 <= found[0].evaluate_metrics_clientapp[2]["accuracy"] <= 1


def test_a_strategy_that_reads_single_replies_gets_them(run):
    found = run(strategy=median())
    assert np.isfinite(found.adapter[next(iter(found.adapter))]).all()
    with pytest.raises(PreAggregationError, match="FedMedian may read every client's own"):
        run(strategy=median(), pre_aggregate=True)
    for options in (
        {"privacy": DevicePrivacy(clipping_norm=1.0, noise_multiplier=1.0), "cohort_size": 4},
        {"secure_aggregation": SecureAggregation(bound=1.0)},
        {"workers": "ray://127.0.0.1:10001"},
    ):
        with pytest.raises(PreAggregationError, match="FedMedian"):
            run(strategy=median(), **options)

    class Own(FedAvg):
        """A subclass may read anything."""

    own = Own(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1)
    with pytest.raises(PreAggregationError, match="Own"):
        run(strategy=own, pre_aggregate=True)


@pytest.mark.parametrize("strategy", [None, adam])
def test_a_killed_simulation_goes_on_with_the_same_bits(run, tmp_path, strategy):
    options = {"rounds": 3, "cohort_size": 6}

    def begin(**changes):
        return run(strategy=strategy and strategy(), **(options | changes))

    class Killed(BaseException):
        pass

    def kill(record):
        if record.round == 2:
            raise Killed

    whole = begin()
    with pytest.raises(Killed):
        begin(state_dir=tmp_path / "state", progress=Progress(round=kill))
    seen = []
    resumed = begin(state_dir=tmp_path / "state", progress=Progress(round=seen.append))
    assert [record.round for record in seen] == [3]
    check_same(whole, resumed)
    assert [r.loss for r in whole.rounds[1:]] == [r.loss for r in resumed.rounds[1:]]
    for name in ("client", "loss", "status"):
        np.testing.assert_array_equal(whole.clients[name], resumed.clients[name])
    with pytest.raises(SimulationStateError, match="other settings"):
        begin(state_dir=tmp_path / "state", seed=10)


def test_a_killed_buffer_goes_on_too(run, tmp_path):
    options = {"rounds": 4, "cohort_size": 6, "pace": Pace(buffer_size=3),
               "latency": Latency(failure_rate=0.2)}  # fmt: skip
    whole = run(**options)
    run(**(options | {"rounds": 2}), state_dir=tmp_path / "state")
    check_same(whole, run(**options, state_dir=tmp_path / "state"))
    assert whole.rounds[-1].virtual_s > 0


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(run):
    check_same(run(workers=1), run(workers=2))


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error(run, mlp_bundle):
    dying = LazyPopulation(clients=20, make=_die, seed=1)
    with pytest.raises(WorkerError, match="a worker process died"):
        run(clients=dying, workers=2)


def _die(client, rng):
    """Examples of a client; the process of the one that has client 7 ends, unless it is ours."""
    import multiprocessing
    import os

    if client == 7 and multiprocessing.parent_process() is not None:
        os._exit(3)
    return rng.normal(size=(3, 64)).astype(np.float32), np.array([0, 1, 2])


def test_empty_clients_are_answered_as_devices_answer(run, population):
    starts = np.concatenate([population.starts, [population.starts[-1]] * 2])
    more = ArrayPopulation(x=population.x, y=population.y, rows=population.rows, starts=starts)
    for options in ({}, {"pre_aggregate": False}):
        found = run(clients=more, **options)
        assert (found.rounds[1].ok, found.rounds[1].empty) == (12, 2)
        check_same(found, run(**options), atol=1e-6)


def test_a_client_that_diverges_is_left_out(run, population):
    x = population.x.copy()
    x[population.rows[: population.starts[1]]] = 1e30
    wild = ArrayPopulation(x=x, y=population.y, rows=population.rows, starts=population.starts)
    found = run(clients=wild)
    assert (found.rounds[1].ok, found.rounds[1].diverged) == (11, 1)
    assert all(np.isfinite(value).all() for value in found.adapter.values())


def test_examples_that_do_not_fit_are_refused(run, population):
    y = population.y.copy()
    y[population.rows[0]] = 10
    wrong = ArrayPopulation(x=population.x, y=y, rows=population.rows, starts=population.starts)
    with pytest.raises(PopulationError, match="label 10"):
        run(clients=wrong)
    lazy = LazyPopulation(clients=3, make=lambda c, r: (np.zeros((2, 64)), np.array([0, 11])),
                          seed=1)  # fmt: skip
    with pytest.raises(PopulationError, match=r"client 0.*label 11"):
        run(clients=lazy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds 0"),
        ({"cohort_size": 13}, "asks 13 clients and the population has 12"),
        ({"cohort_size": 10, "pace": Pace(over_selection=1.3)}, "asks 13 clients"),
        ({"cohort_size": 0}, "cohort_size 0"),
        ({"workers": 0}, "workers 0"),
        ({"workers": "tcp://x"}, "workers 'tcp://x'"),
        ({"chunk_size": 0}, "chunk_size 0"),
        ({"secure_aggregation": SecureAggregation()}, "needs bound"),
        ({"secure_aggregation": SecureAggregation(value_bits=16, modulus_bits=17, bound=1.0)},
         "raise modulus_bits"),
        ({"privacy": DevicePrivacy(clipping_norm=1.0, noise_multiplier=1.0)}, "need cohort_size"),
        ({"pace": Pace(buffer_size=2)}, "need cohort_size"),
        ({"training": LocalTraining(epochs=1, batch_size=33, learning_rate=0.1)},
         "the bundle takes at most 32"),
        ({"cohort_size": 5, "strategy": FedAvg(fraction_train=0.5)}, "both choose the cohort"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(run, options, message):
    with pytest.raises(SimulationConfigError, match=message):
        run(**options)


def test_settings_that_no_device_knows_are_refused(run):
    from flwr.serverapp.strategy import FedProx

    prox = FedProx(
        proximal_mu=0.1, fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1,
        min_available_nodes=1,
    )  # fmt: skip
    with pytest.raises(SimulationConfigError, match="proximal-mu"):
        run(strategy=prox)


def test_clipping_and_noise_switched_off_is_the_plain_mean_of_updates(run, population):
    """Clip at infinity without noise: every device weighs the same, so sizes must be equal."""
    rows = population.rows[:120]
    even = ArrayPopulation(x=population.x, y=population.y, rows=rows, starts=np.arange(0, 121, 10))
    plain = run(clients=even, rounds=1)
    off = DevicePrivacy(clipping_norm=1e6, noise_multiplier=0.0)
    private = run(clients=even, rounds=1, privacy=off, cohort_size=12)
    check_same(plain, private, atol=1e-6)
    assert "no bound" in private.privacy


def test_privacy_reports_what_it_spent(run):
    found = run(privacy=DevicePrivacy(clipping_norm=0.5, noise_multiplier=2.0), cohort_size=6)
    first, second = (record.epsilon for record in found.rounds[1:])
    assert 0 < first < second
    for part in ("central", "delta 1e-06", "unit one device", "add-or-remove-one"):
        assert part in found.privacy


def test_secure_aggregation_is_the_mean_up_to_its_rounding(run, training):
    """One unit is bound / 32767; the mean of 12 weighted values is off by less than a unit each."""
    secure = SecureAggregation(bound=2.0, max_examples=40)
    found, plain = run(rounds=1, secure_aggregation=secure), run(rounds=1)
    weights = np.minimum(plain.clients["examples"], 40) / 40
    unit = 2.0 / secure.largest
    check_same(plain, found, atol=unit * (len(weights) / weights.sum() + 1))
    assert any((found.adapter[name] != plain.adapter[name]).any() for name in plain.adapter)


def test_clients_can_keep_their_optimiser(run, bundle):
    """SGD has no state, so keeping it changes nothing; steps are counted all the same."""
    check_same(run(), run(keep_optimizer=True), atol=1e-6)


def test_results_are_read_back_as_they_were(run, tmp_path, test_examples):
    found = run(test=test_examples, latency=Latency(), availability=Diurnal(low=0.5, high=1.0),
                cohort_size=4)  # fmt: skip
    rounds, clients = found.to_parquet(tmp_path)
    assert str(read_rounds(rounds)) == str(found.rounds)  # NaN is not equal to itself
    again = read_clients([clients])
    for name in ("round", "client", "examples", "seconds"):
        np.testing.assert_array_equal(again[name], found.clients[name])
    assert found.plot(tmp_path / "plot.png").stat().st_size > 10_000
    assert found.hours_to(2.0) == float("inf")
    assert found.hours_to(0.0) == 0.0


def test_one_client_at_a_time_is_a_stated_fallback(run):
    check_same(run(), run(vectorise=False), atol=1e-5)
