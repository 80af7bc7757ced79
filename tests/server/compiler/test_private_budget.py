"""What the compiler says about a small privacy budget."""

from __future__ import annotations

import pytest

from rootlet_server.compiler import (
    CompileConfig,
    CompileError,
    LoraConfig,
    PrivacyConfig,
    private_budget,
)
from rootlet_server.compiler.private_budget import measured_row, private_advice

TABLE = {
    "head": {8.0: 63.1, 4.0: 62.0, 1.0: 65.0},
    "bp-lora": {8.0: 75.7, 4.0: 70.5, 1.0: 58.1},
    "bp": {8.0: 81.7, 4.0: 81.2, 1.0: 68.7},
    "dfa": {8.0: 76.0, 4.0: 76.0, 1.0: 60.2},
    "dfa-blocks-3": {8.0: 80.0, 4.0: 79.0, 1.0: 67.0},
}
OPTIONS = {
    "head": {"rule": "head_only"},
    "bp-lora": {"rule": "backprop", "adapter": LoraConfig(kind="lora")},
    "bp": {"rule": "backprop"},
    "dfa": {"rule": "dfa"},
    "dfa-blocks-3": {},
}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """Figures of our own: the committed ones are held to the scoreboard by test_committed."""
    monkeypatch.setattr(private_budget, "ACCURACY", TABLE)


def advice(target_epsilon, row="dfa", **options):
    privacy = PrivacyConfig(target_epsilon=target_epsilon)
    return private_advice(CompileConfig(privacy=privacy, **OPTIONS[row] | options))


def test_dfa_under_a_small_budget_is_sent_to_what_did_best_there():
    (line,) = advice(1.0)
    assert "60.2 %" in line
    assert "68.7 %" in line
    assert "rule='backprop'" in line


@pytest.mark.parametrize("row", OPTIONS)
def test_what_is_clearly_worse_is_told_the_best_and_what_ties_with_it_is_left_alone(row):
    assert measured_row(CompileConfig(**OPTIONS[row])) == row
    assert bool(advice(2.0, row)) == (TABLE[row][1.0] < 66.7)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.9])
def test_a_budget_between_two_measured_ones_takes_the_smaller(epsilon):
    assert "at epsilon 1 " in advice(epsilon)[0]


def test_what_was_not_measured_gets_no_advice():
    assert advice(1.0, adapter=LoraConfig(kind="lora_frozen_a")) == ()
    privacy = PrivacyConfig(target_epsilon=1.0)
    assert private_advice(CompileConfig(block_size="all", privacy=privacy)) == ()
    assert private_advice(CompileConfig(privacy=PrivacyConfig())) == ()
    assert private_advice(CompileConfig()) == ()


def test_a_rule_without_a_private_step_is_refused():
    with pytest.raises(CompileError, match="zeroth_order"):
        CompileConfig(rule="zeroth_order", privacy=PrivacyConfig())


@pytest.mark.parametrize("wrong", [{"target_epsilon": 0.0}, {"delta": 0.0}, {"delta": 1.0}])
def test_impossible_budgets_are_refused(wrong):
    with pytest.raises(CompileError, match=next(iter(wrong))):
        PrivacyConfig(**wrong)
