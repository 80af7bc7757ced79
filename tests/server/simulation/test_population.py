"""Populations: who gets what, and that a million cost nothing."""

import tracemalloc

import numpy as np
import pytest
from torch.utils.data import TensorDataset

from rootlet_server.errors import PopulationError, SimulationStateError
from rootlet_server.simulation import (
    ArrayPopulation,
    LazyPopulation,
    PartitionerPopulation,
    SampledPopulation,
    Shifted,
    by_label,
    by_user,
    dirichlet,
    from_hugging_face,
    from_torch,
    iid,
)
from rootlet_server.simulation.bank import ClientBank, Slot

N = 200
X = np.arange(N, dtype=np.float32)[:, None]
Y = np.arange(N) % 10


def dealt(population):
    return np.sort(
        np.concatenate([population.examples(k)[0][:, 0] for k in range(len(population))])
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: iid(X, Y, clients=7, seed=1),
        lambda: dirichlet(X, Y, clients=7, alpha=0.3, seed=1),
        lambda: by_label(X, Y, clients=5, shards_each=2, seed=1),
        lambda: by_user(X, Y, np.repeat(["c", "a", "b", "d"], 50)),
    ],
)
def test_every_example_is_dealt_to_one_client_and_again_to_the_same(make):
    population = make()
    np.testing.assert_array_equal(dealt(population), X[:, 0])
    for client in range(len(population)):
        one, again = population.examples(client), make().examples(client)
        np.testing.assert_array_equal(one[0], again[0])
        np.testing.assert_array_equal(one[1], one[0][:, 0].astype(int) % 10)


def test_what_each_way_of_dealing_is_for():
    sizes = [len(iid(X, Y, clients=7, seed=1).examples(k)[1]) for k in range(7)]
    assert max(sizes) - min(sizes) == 1
    shards = by_label(X, Y, clients=5, shards_each=2, seed=1)
    assert max(len(set(shards.examples(k)[1].tolist())) for k in range(5)) <= 3
    users = by_user(X, Y, np.repeat(["c", "a", "b", "d"], 50))
    assert users.examples(0)[0][:, 0].tolist() == list(range(50, 100))  # a

    def skew(alpha):
        population = dirichlet(X, Y, clients=5, alpha=alpha, seed=1)
        shares = [np.bincount(population.examples(k)[1], minlength=10) for k in range(5)]
        return np.mean([(s / max(s.sum(), 1)).max() for s in shares])

    assert skew(0.05) > 2 * skew(100.0)


def test_a_million_clients_are_made_when_they_are_asked_for():
    tracemalloc.start()
    many = SampledPopulation(x=X, y=Y, clients=1_000_000, smallest=3, largest=9, alpha=0.5, seed=2)
    one = many.examples(999_999)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # less than a byte a client
    assert 3 <= len(one[0]) <= 9
    np.testing.assert_array_equal(one[0], many.examples(999_999)[0])
    assert len(many) == 1_000_000
    made = LazyPopulation(clients=10**6, make=lambda c, rng: (X[:c], rng.random(c)), seed=1)
    np.testing.assert_array_equal(made.examples(5)[1], made.examples(5)[1])


def test_small_alpha_draws_few_classes():
    def classes(alpha):
        drawn = SampledPopulation(
            x=X, y=Y, clients=50, smallest=20, largest=20, alpha=alpha, seed=1
        )
        return np.mean([len(set(drawn.examples(k)[1].tolist())) for k in range(50)])

    assert classes(0.05) < 3 < 7 < classes(50.0)


def test_clients_that_see_the_world_turned_noisy_and_in_another_light():
    pictures = np.zeros((6, 5, 5), np.float32)
    pictures[:, 2, 3] = 1
    base = iid(pictures.reshape(6, 25), np.arange(6), clients=3, seed=1)
    same = Shifted(population=base)
    np.testing.assert_allclose(same.examples(0)[0], base.examples(0)[0], atol=1e-7)
    turned = Shifted(population=base, rotation=90.0, picture=(5, 5), seed=2)
    assert turned.examples(0)[0].shape == base.examples(0)[0].shape
    assert np.abs(turned.examples(0)[0] - base.examples(0)[0]).max() > 0.1
    for changes in ({"noise": 0.5}, {"style": 0.5}):
        shifted = Shifted(population=base, **changes)
        one, again = (shifted.examples(1)[0] for _ in range(2))
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - base.examples(1)[0]).max() > 0
    with pytest.raises(PopulationError, match="picture"):
        Shifted(population=base, rotation=10.0).examples(0)


def test_a_torch_data_set():
    import torch

    x, y = from_torch(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_hugging_face_and_flower_data_sets(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Array2D, Dataset, Features, Value
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    pictures = np.arange(4 * N, dtype=np.float32).reshape(N, 2, 2)
    features = Features(
        {"picture": Array2D(pictures.shape[1:], "float32"), "label": Value("int64")}
    )
    data = Dataset.from_dict({"picture": list(pictures), "label": Y.tolist()}, features=features)
    x, y = from_hugging_face(data, x="picture", y="label")
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(x, pictures)
    np.testing.assert_array_equal(y, Y)
    with pytest.raises(PopulationError, match="'image': the data set has picture, label"):
        from_hugging_face(data, x="image", y="label")
    for partitioner in (
        IidPartitioner(num_partitions=4),
        DirichletPartitioner(
            num_partitions=4, partition_by="label", alpha=1.0, min_partition_size=1, seed=3
        ),
    ):
        partitioner.dataset = data
        population = PartitionerPopulation(partitioner=partitioner, x="picture", y="label")
        parts = [population.examples(client) for client in range(len(population))]
        assert len(parts) == 4
        rows, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        order = rows[:, 0, 0].argsort()
        np.testing.assert_array_equal(rows[order], pictures)
        np.testing.assert_array_equal(labels[order], Y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iid(X, Y, clients=0, seed=1), "0 clients"),
        (lambda: iid(X, Y, clients=N + 1, seed=1), "at least one example each"),
        (lambda: dirichlet(X, Y, clients=2, alpha=0.0, seed=1), "alpha"),
        (lambda: by_user(X, Y, [1, 2]), "users has 2"),
        (lambda: ArrayPopulation(x=X, y=Y[:3], rows=np.arange(3), starts=np.array([0, 3])),
         "give one y each"),
        (lambda: ArrayPopulation(x=X, y=Y, rows=np.array([N]), starts=np.array([0, 1])), "rows"),
        (lambda: ArrayPopulation(x=X, y=Y, rows=np.arange(3), starts=np.array([0, 2])), "starts"),
        (lambda: SampledPopulation(x=X, y=Y, clients=1, smallest=5, largest=4), "smallest"),
        (lambda: LazyPopulation(clients=0, make=lambda c, r: (X, Y), seed=1), "clients 0"),
    ],
)  # fmt: skip
def test_populations_that_cannot_be(make, message):
    with pytest.raises(PopulationError, match=message):
        make()


def test_a_bank_keeps_the_rows_of_finished_rounds_only(tmp_path):
    slots = [Slot("m", (2, 3)), Slot("steps", ())]

    def opened():
        return ClientBank(tmp_path / "clients.bank", 1_000_000, slots)

    def stage(bank, value):
        clients = np.array([5, 999_999])
        bank.stage(clients, {"m": np.full((2, 2, 3), value), "steps": np.full(2, value)})

    bank = opened()
    assert bank.read(np.array([0]), ["m"])["m"].tolist() == [[[0.0] * 3] * 2]
    stage(bank, 1.0)
    assert bank.read(np.array([5]), ["steps"])["steps"].tolist() == [0.0]  # not before its round
    bank.commit(1)
    bank.apply(1)
    assert bank.read(np.array([5, 6]), ["steps"])["steps"].tolist() == [1.0, 0.0]
    stage(bank, 2.0)
    bank.commit(2)  # killed before the checkpoint of round 2
    again = opened()
    again.recover(1)
    assert again.read(np.array([5]), ["m"])["m"].max() == 1.0
    stage(again, 3.0)
    again.commit(2)  # killed after it
    last = opened()
    last.recover(2)
    assert last.read(np.array([999_999]), ["m"])["m"].min() == 3.0
    assert (tmp_path / "clients.bank").stat().st_blocks * 512 < 4_000_000  # the rest is a hole
    with pytest.raises(SimulationStateError, match="another simulation"):
        ClientBank(tmp_path / "clients.bank", 10, slots)
