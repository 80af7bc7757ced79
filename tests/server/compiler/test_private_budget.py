"""What the compiler says about a small privacy budget."""

from __future__ import annotations

import pytest

from rootlet_server.compiler import CompileConfig, CompileError, LoraConfig, PrivacyConfig
from rootlet_server.compiler.private_budget import ACCURACY, private_advice


def advice(target_epsilon, rule="dfa", kind="calibrated"):
    privacy = PrivacyConfig(target_epsilon=target_epsilon)
    return private_advice(CompileConfig(rule=rule, adapter=LoraConfig(kind=kind), privacy=privacy))


def test_dfa_under_a_small_budget_is_sent_to_what_did_best_there():
    (line,) = advice(1.0)
    assert "60.2 %" in line
    assert "68.7 %" in line
    assert "rule='backprop'" in line


def test_every_method_is_told_the_best_one_and_the_best_is_left_alone():
    for rule, trains_a in ACCURACY:
        lines = advice(2.0, rule, "lora" if trains_a else "calibrated")
        assert bool(lines) == ((rule, trains_a) != ("backprop", False))


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.9])
def test_a_budget_between_two_measured_ones_takes_the_smaller(epsilon):
    assert "at epsilon 1 " in advice(epsilon)[0]


def test_what_was_not_measured_gets_no_advice():
    assert advice(1.0, kind="lora_frozen_a") == ()
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
