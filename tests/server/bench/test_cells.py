"""The private and the continual cells: who tunes, what follows, and what the page says of it."""

from rootlet_server.bench import continual_cells, private
from rootlet_server.bench.continual_cells import (
    AT_REPLAYS_RATE,
    NAIVE,
    REPLAYED,
    VALIDATION_SEED,
    continual_section,
)
from rootlet_server.bench.run import work_off
from rootlet_server.bench.store import Store
from rootlet_server.bench.summary import by_epsilon


def test_private_rows_tune_on_one_seed_and_take_its_choice_to_the_others():
    (tuning,) = private.first_cells(["dfa"])
    assert len(tuning.grid) == len(private.EPSILONS) * len(private.RATES)
    runs = [
        {"epsilon": e, "rate": r, "validation": r if e == 8.0 else -r, "test": 0.5}
        for e, r in tuning.grid
    ]
    found = private.further_cells(tuning, {"runs": runs}, 3)
    assert [cell.seed for cell in found] == [1, 2]
    assert dict(found[0].grid)[8.0] == max(private.RATES)
    assert dict(found[0].grid)[None] == min(private.RATES)
    assert private.further_cells(found[0], {"runs": []}, 3) == []


def test_a_private_row_shows_the_chosen_rate_even_where_another_was_lucky_on_one_seed():
    def record(seed, *runs):
        names = ("epsilon", "rate", "validation", "test")
        rows = [dict(zip(names, run, strict=True)) for run in runs]
        return {"task": "private", "arm": "dfa", "seed": seed, "runs": rows}

    records = [
        record(0, (1.0, 0.1, 0.7, 0.60), (1.0, 0.3, 0.6, 0.9), (None, 0.1, 0.9, 0.95)),
        record(1, (1.0, 0.1, 0.5, 0.62), (None, 0.1, 0.9, 0.97)),
    ]
    found = by_epsilon(records)
    assert list(found["dfa"]) == [None, 1.0]
    assert found["dfa"][1.0] == [60.0, 62.0]


def test_the_sequence_is_tuned_on_a_drawing_of_its_own_and_naive_runs_at_replays_rate_too():
    tuning = continual_cells.first_cells()[0]
    assert tuning.seed == VALIDATION_SEED
    measures = [
        {"method": method, "rate": rate, "average_accuracy": rate if method == REPLAYED else -rate}
        for method, rates in tuning.rates
        for rate in rates
    ]
    cells = continual_cells.further_cells(tuning, {"measures": measures})
    rates = dict(cells[0].rates)
    assert rates[REPLAYED] == rates[AT_REPLAYS_RATE] == (max(continual_cells.RATES),)
    assert rates[NAIVE] == (min(continual_cells.RATES),)
    assert continual_cells.further_cells(cells[0], {"measures": []}) == []


def test_the_page_says_whether_replay_halves_forgetting():
    def record(seed, naive, replayed):
        row = {
            "rate": 1e-3,
            "average_accuracy": 0.5,
            "backward_transfer": 0,
            "learning_accuracy": 1,
        }
        return {
            "task": "continual", "sequence": "digits", "arm": "dfa", "seed": seed,
            "measures": [{"method": method, "forgetting": value, **row}
                         for method, value in ((NAIVE, naive), (REPLAYED, replayed),
                                               (AT_REPLAYS_RATE, 0.4))],
        }  # fmt: skip

    page = continual_section([record(0, 0.5, 0.2), record(1, 0.7, 0.28), record(100, 9, 9)])
    assert "dfa 0.40 (0.60 at the same rate; goal 0.5: met)" in page
    assert "| naive (0.001) | 50.0 +- 0.0 | 60.0 +- 14.1 |" in page
    assert "**missed**" in continual_section([record(0, 0.5, 0.4)])


def test_a_report_runs_nothing_and_leaves_out_what_is_not_kept(tmp_path):
    store = Store(tmp_path / "cells.jsonl")
    kept, missing = continual_cells.first_cells()[:2]
    store.add({"key": kept.key, "measures": []})
    assert work_off([kept, missing], store, workers=1, stored_only=True) == [store[kept.key]]
    assert work_off([missing], store, workers=1, stored_only=True) == []
