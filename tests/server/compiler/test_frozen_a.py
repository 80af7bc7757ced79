"""A frozen A: where it comes from, and what its int8 form costs and saves."""

from __future__ import annotations

import pytest
import torch

from rootlet_server.compiler.learner import float_a


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["mlp", "residual_cnn"])
def test_an_int8_a_hardly_moves_the_gradients_and_takes_a_fraction_of_the_bytes(lab, name):
    """The gradient of B is G A, with G of the outputs' errors and the inputs: it is linear in A.

    At the start, where B is 0, the outputs do not depend on A: the two G are the same. An entry of
    A moves by at most 1/254 of its column's largest, so a column of G A by |G| |a_j| / 254, and
    G A itself is at least |G| |a_1| where errors follow the inputs' main direction. Of r columns
    the relative movement is below sqrt(r) max|a_j| / |a_1| / 254: whitened, the last columns are
    the longest, and int8 costs them most. (After some steps the bound says nothing: a gate or a
    code of an int8 activation that flips moves a small network's gradients by far more.)
    """
    case = lab.case(name)
    exact, int8 = (lab.built(name, a_dtype=a_dtype) for a_dtype in ("float32", "int8"))
    found, expected = (lab.gradients(b, "backprop", case.x, case.y) for b in (int8, exact))
    for site in exact.step.learner.sites:
        key, lengths = f"{site.module}.lora_B", float_a(exact.frozen, site.module).norm(dim=0)
        bound = len(lengths) ** 0.5 * float(lengths.max() / lengths[0]) / 254
        assert 0 < relative(found[key], expected[key]) < bound, key
    sizes = [
        sum(v.numel() * v.element_size() for k, v in b.frozen.items() if "lora_A" in k)
        for b in (int8, exact)
    ]
    assert sizes[0] < 0.4 * sizes[1]  # a scale for each of four columns weighs much in small ones
    for site in exact.step.learner.sites:
        a = float_a(exact.frozen, site.module)
        moved = (float_a(int8.frozen, site.module) - a).abs()
        assert (moved <= a.abs().amax(0) / 254 * (1 + 1e-5)).all()


def test_a_follows_the_base_unless_it_is_told(lab):
    def forms(**options):
        frozen = lab.build(lab.case("mlp"), **options).frozen
        return sorted(k.partition(":")[2] for k in frozen if k.startswith("first.lora_A"))

    assert forms(base_dtype="float32") == ["linear"]
    assert forms(base_dtype="int8") == ["linear.q", "linear.scale"]
    assert forms(base_dtype="int8", a_dtype="float32") == ["linear"]
    assert forms(base_dtype="int8", kind="lora") == []


def test_a_random_frozen_a_is_the_one_that_lora_starts_from(lab):
    drawn, trained = (lab.build(lab.case("mlp"), kind=k) for k in ("lora_frozen_a", "lora"))
    assert not drawn.step.learner.trains_a
    for module in ("first", "second"):
        start = trained.adapter[f"{module}.lora_A"]
        torch.testing.assert_close(drawn.frozen[f"{module}.lora_A:linear"].t(), start)
        assert f"{module}.lora_A" not in drawn.adapter
