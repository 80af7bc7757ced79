"""Which rule a model gets where none is named."""

import pytest

from rootlet_server.compiler import CompileConfig, LoraConfig, build, compile_bundle
from rootlet_server.compiler.build import rule_of
from rootlet_server.compiler.defaults import BY_ARCHITECTURE, architecture
from rootlet_server.compiler.trace import trace

CONFIG = CompileConfig(base_dtype="float32", adapter=LoraConfig(rank=2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mlp", "dense"),
        ("residual_cnn", "convolution"),
        ("uint8_cnn", "convolution"),
        ("vit_gpt", "attention"),
        ("vit_mha", "attention"),
        ("folded", "convolution"),
    ],
)
def test_an_architecture_is_read_off_the_graph(lab, name, kind):
    case = lab.case(name)
    assert architecture(trace(case.model, case.x[:4])) == kind


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit_gpt"])
def test_auto_builds_what_the_architecture_gets(lab, name):
    case = lab.case(name)
    built = build(case.model, case.x, CONFIG)
    kind = architecture(built.step.learner.program)
    assert built.chosen_for == kind
    for option, value in BY_ARCHITECTURE[kind].items():
        assert getattr(built.config, option) == value
    assert built.step.rule == rule_of(built.config)


def test_an_option_of_dfa_names_the_rule(lab):
    case = lab.case("mlp")
    config = CompileConfig(base_dtype="float32", feedback="random", adapter=LoraConfig(rank=2))
    built = build(case.model, case.x, config)
    assert (built.step.rule, built.config.feedback, built.chosen_for) == ("dfa", "random", None)


def test_a_rule_that_is_named_is_taken(lab):
    case = lab.case("mlp")
    config = CompileConfig(base_dtype="float32", rule="backprop", adapter=LoraConfig(rank=2))
    built = build(case.model, case.x, config)
    assert (built.step.rule, built.chosen_for) == ("backprop", None)


def test_the_publisher_is_told(lab, tmp_path):
    case, said = lab.case("mlp"), []
    compiled = compile_bundle(
        case.model, calibration_x=case.x, config=CONFIG, name="auto", version=1, signing_key=None,
        out=tmp_path / "auto.rootlet", progress=said.append,
    )  # fmt: skip
    (line,) = (line for line in compiled.choices if line.startswith("rule: "))
    assert line in said
    assert compiled.built.config.rule in line
