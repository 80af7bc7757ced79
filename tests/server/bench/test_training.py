"""Training all rates at once is training each; what is drawn is a function of the seed."""

import pytest
import torch

from rootlet_server.bench.arms import ARMS, equal_rank
from rootlet_server.bench.private import MAX_GRAD_NORM, train_privately
from rootlet_server.bench.suite import TASKS, first_cells, further_cells
from rootlet_server.bench.training import accuracies, rows_of, train

RATES = (1e-3, 1e-2)


@pytest.fixture(scope="module")
def problem():
    return TASKS["digits-2"].make(0)


@pytest.mark.parametrize("arm", ["dfa", "bp"])
def test_stacked_rates_train_as_each_alone(problem, arm):
    built = ARMS[arm].build(problem, 0)
    settings = {"rates": RATES, "epochs": 1, "batch_size": 16, "seed": 0}
    together = train(built, problem.train, **settings, stacked=True)
    in_turn = train(built, problem.train, **settings, stacked=False)
    for name, expected in in_turn.adapters.items():
        # float32 sums in another order, over 25 steps of Adam, which divides by small numbers
        torch.testing.assert_close(together.adapters[name], expected, rtol=1e-3, atol=1e-4)
    assert accuracies(built, together, problem.test, stacked=True) == pytest.approx(
        accuracies(built, in_turn, problem.test, stacked=False), abs=0.01
    )


def test_the_order_is_a_function_of_the_seed_and_sees_each_example_once_an_epoch():
    first, again, other = (torch.stack(list(rows_of(32, 8, 2, seed))) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    for epoch in first.reshape(2, 32):
        assert sorted(epoch.tolist()) == list(range(32))


def test_lora_has_about_the_size_of_the_frozen_a_adapters(problem):
    sizes = [
        sum(v.numel() for v in ARMS[arm].build(problem, 0).adapter.values())
        for arm in ("bp", "bp-lora")
    ]
    assert equal_rank(problem) < 32
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_noise_of_no_size_learns_and_noise_of_any_size_does_not(problem):
    built = ARMS["head"].build(problem, 0)
    grid = [(0.0, 0.1), (1e4, 0.1)]
    trained = train_privately(built, problem, grid, steps=40, seed=0)
    quiet, loud = accuracies(built, trained, problem.test, stacked=True)
    assert quiet > 0.75
    assert loud < 0.4


def test_one_example_moves_the_clipped_sum_by_no_more_than_the_bound(problem):
    built = ARMS["dfa"].build(problem, 0)
    x, y, clip = problem.train.x[:8], problem.train.y[:8], torch.tensor(MAX_GRAD_NORM)
    x = torch.cat([x[:7], 1e4 * x[7:]])
    y = torch.cat(
        [y[:7], (y[7:] + 1) % 10]
    )  # wrong, and sure of it: nothing is left of a loss of 0
    with_it, without = (
        built.step.gradients(built.frozen, built.adapter, x, y, w, clip)[3]
        for w in (torch.ones(8), torch.cat([torch.ones(7), torch.zeros(1)]))
    )
    moved = sum(float((with_it[n] - without[n]).square().sum()) for n in with_it) ** 0.5
    assert 0.5 * MAX_GRAD_NORM < moved <= MAX_GRAD_NORM * (1 + 1e-5)


def test_large_tasks_tune_on_one_seed_and_take_its_choice_to_the_others():
    (tuning,) = first_cells(["images"], ["bp"], None)
    runs = [
        {"rate": 1e-3, "epochs": 4, "validation": 0.8, "test": 0.7},
        {"rate": 3e-3, "epochs": 4, "validation": 0.9, "test": 0.6},
    ]
    further = further_cells(tuning, {"runs": runs}, None)
    assert [(c.seed, c.rates, c.epochs) for c in further] == [
        (seed, (3e-3,), (4,)) for seed in (1, 2, 3, 4)
    ]
    assert len({cell.key for cell in (tuning, *further)}) == 5
    assert further_cells(further[0], {"runs": runs}, None) == []
