"""A badly pre-trained ten-layer base: a constant high rate collapses, the defaults do not."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from rootlet_server.compiler import CompileConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATE = 3e-2  # for Adam; 1e-3 suits this base


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield runpy.run_path(str(BENCHMARKS / "bench_stability.py"))


@pytest.fixture(scope="module")
def outcomes(bench, tmp_path_factory):
    """Each arm's outcome with seed 0, on one bundle."""
    task = bench["make_task"](0)
    assert 0.78 <= task.source_accuracy < 0.95
    folder = tmp_path_factory.mktemp("stability")
    with bench["compile_task"](task, CompileConfig(optimizer="adam"), folder) as bundle:
        return {arm: bench["run_arm"](bundle, task, arm, RATE, 0) for arm in bench["ARMS"]}


@pytest.mark.slow
def test_a_constant_rate_collapses_without_a_guard(outcomes):
    assert outcomes["constant"].after < 0.45
    assert outcomes["constant"].rolled_back == 0


@pytest.mark.slow
def test_the_defaults_do_not_collapse_and_say_what_they_did(outcomes):
    guarded = outcomes["**warm-up, decay, guard**"]
    assert guarded.after > 0.6
    assert guarded.after > outcomes["warm-up, decay"].after + 0.1
    assert guarded.rolled_back > 0
    assert "rose from" in guarded.reason or "fell from" in guarded.reason


@pytest.mark.slow
def test_plain_sgd_at_a_rate_that_diverges_says_so(bench, tmp_path):
    """The defaults do not save every fit; none ends badly in silence."""
    task = bench["make_task"](0)
    with bench["compile_task"](task, CompileConfig(), tmp_path) as bundle:
        assert bundle.manifest.optimizer == "sgd"
        outcome = bench["run_arm"](bundle, task, "**warm-up, decay, guard**", 0.3, 0)
    assert outcome.rolled_back > 0
    assert outcome.reason
    assert outcome.after > outcome.before - 0.05  # back at a state that was good, or at the start
