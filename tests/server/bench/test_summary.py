"""From stored cells to figures: tuning, pairing, ties and the default that follows."""

import json
import math

import pytest

from rootlet_server.bench.store import Store
from rootlet_server.bench.summary import Gap, default_arm, default_of, gap, rows
from rootlet_server.bench.table import scoreboard


def cell(arm, seed, tests, task="digits-2", validation=None):
    """A record that tried two rates for one number of epochs."""
    validation = validation or [0.5, 0.6]
    return {
        "key": f"{task}-{arm}-{seed}",
        "task": task,
        "arm": arm,
        "seed": seed,
        "runs": [
            {"rate": rate, "epochs": 8, "validation": v, "test": t}
            for rate, v, t in zip((1e-3, 1e-2), validation, tests, strict=True)
        ],
        "cosines": [["0", 0.5, None], ["head", 1.0, 1.0]],
        "trained_values": 100,
    }


def records(**accuracy_by_arm):
    """Cells of seeds 0, 1, ... with these accuracies at the better rate."""
    return [
        cell(arm.replace("_", "-"), seed, [0.1, value])
        for arm, values in accuracy_by_arm.items()
        for seed, value in enumerate(values)
    ]


def test_the_rate_is_chosen_on_validation_and_reported_on_test():
    found = rows([cell("bp", 0, [0.9, 0.7]), cell("bp", 1, [0.9, 0.8])], "digits-2")["bp"]
    assert found.rate == 1e-2
    assert found.by_seed == pytest.approx({0: 70.0, 1: 80.0})
    assert found.mean == pytest.approx(75.0)
    assert found.sd == pytest.approx(math.sqrt(50.0))


def test_a_gap_is_paired_by_seed():
    table = rows(records(bp=[0.90, 0.80, 0.70], dfa=[0.89, 0.79, 0.69]), "digits-2")
    found = gap(table, "dfa", "bp")
    assert found.points == pytest.approx(-1.0)  # seeds differ by 20 points, their pairs by nothing
    assert found.error < 0.01
    assert not found.is_tie


def test_a_gap_of_one_seed_is_a_tie_because_nothing_is_known_of_its_error():
    found = gap(rows(records(bp=[0.9], dfa=[0.1]), "digits-2"), "dfa", "bp")
    assert math.isnan(found.error)
    assert found.is_tie


@pytest.mark.parametrize(("points", "is_tie"), [(-1.9, True), (-2.1, False), (2.1, False)])
def test_a_tie_is_a_difference_under_two_standard_errors(points, is_tie):
    assert Gap(points=points, error=1.0).is_tie is is_tie


def test_the_default_is_the_cheapest_row_that_ties_with_the_best():
    table = rows(
        records(head=[0.70, 0.71, 0.69], dfa=[0.90, 0.93, 0.88], bp=[0.91, 0.92, 0.90]), "digits-2"
    )
    assert default_arm(table) == "dfa"


def test_the_default_is_backprop_where_feedback_certainly_loses():
    table = rows(
        records(head=[0.70, 0.71, 0.69], dfa=[0.85, 0.86, 0.84], bp=[0.91, 0.92, 0.90]), "digits-2"
    )
    assert default_arm(table) == "bp"


def test_the_default_is_the_head_where_nothing_beats_it():
    table = rows(
        records(head=[0.70, 0.71, 0.69], dfa=[0.70, 0.71, 0.68], bp=[0.69, 0.71, 0.70]), "digits-2"
    )
    assert default_arm(table) == "head"


def test_an_architectures_default_holds_on_all_of_its_tasks():
    """DFA ties on one task and loses on the other: backprop is what both have."""
    good = rows(
        records(head=[0.70, 0.71, 0.69], dfa=[0.90, 0.93, 0.88], bp=[0.91, 0.92, 0.90]), "digits-2"
    )
    bad = rows(
        records(head=[0.70, 0.71, 0.69], dfa=[0.85, 0.86, 0.84], bp=[0.91, 0.92, 0.90]), "digits-2"
    )
    assert default_of([good]) == "dfa"
    assert default_of([good, bad]) == "bp"
    assert default_of([]) is None
    assert default_of([good, {"head": good["head"]}]) is None


def test_the_page_says_in_words_where_feedback_loses():
    kept = records(
        head=[0.70, 0.71, 0.69], dfa_blocks_3=[0.85, 0.86, 0.84], bp=[0.91, 0.92, 0.90],
        bp_lora=[0.88, 0.89, 0.87],
    )  # fmt: skip
    page = scoreboard(kept, "a machine")
    assert "DFA loses to backprop on digits-2** by 6.0 points" in page
    assert "backprop is 21.0 points above a tuned head, DFA 15.0" in page
    assert "-6.00 points from backprop" in page
    assert "**missed**" in page


def test_a_store_goes_on_after_a_line_that_a_crash_cut_short(tmp_path):
    path = tmp_path / "cells.jsonl"
    first = Store(path)
    first.add({"key": "a", "value": 1})
    with path.open("a") as file:
        file.write('{"key": "b", "val')
    second = Store(path)
    assert "a" in second
    assert "b" not in second
    second.add({"key": "c", "value": 3})
    assert [record["key"] for record in Store(path).records()] == ["a", "c"]
    assert json.loads(path.read_text().splitlines()[0]) == {"key": "a", "value": 1}
