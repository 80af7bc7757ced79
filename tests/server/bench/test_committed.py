"""What the compiler takes by default, and advises, is what the committed scoreboard says."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from rootlet_server.bench.arms import ARMS
from rootlet_server.bench.suite import TASKS
from rootlet_server.bench.summary import by_epsilon, default_of, rows
from rootlet_server.compiler.defaults import BY_ARCHITECTURE, architecture
from rootlet_server.compiler.private_budget import ACCURACY
from rootlet_server.compiler.trace import trace

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="module")
def records():
    return [json.loads(line) for line in (RESULTS / "cells.jsonl").read_text().splitlines()]


def test_the_default_rule_of_each_architecture_follows_the_table(records):
    by_kind = defaultdict(list)
    for name, task in TASKS.items():
        by_kind[task.kind].append(rows(records, name))
    assert by_kind.keys() == BY_ARCHITECTURE.keys()
    for kind, tables in by_kind.items():
        assert dict(ARMS[default_of(tables)].settings) == BY_ARCHITECTURE[kind], kind


@pytest.mark.parametrize("name", ["digits-2", "new-classes"])
def test_a_task_is_of_the_kind_that_the_compiler_takes_it_for(name):
    problem = TASKS[name].make(0)
    assert architecture(trace(problem.model, problem.calibration_x[:4])) == TASKS[name].kind


def test_the_advice_under_a_budget_holds_the_measured_accuracies(records):
    found = by_epsilon(records)
    for arm, by in ACCURACY.items():
        for epsilon, accuracy in by.items():
            mean = sum(found[arm][epsilon]) / len(found[arm][epsilon])
            assert accuracy == pytest.approx(mean, abs=0.051), (arm, epsilon)
