"""Ten steps over batches of 16, 1 and 7 in the devices' engine against the pure step.

Compared is ``|found - expected| / |expected|`` of every output, in Frobenius norms, while both
sides keep their own state. SGD agrees to 1e-5, in float32 and in int8.
"""

from __future__ import annotations

import pytest
import torch

SIZES = (16, 1, 7, 16, 1, 7, 16, 1, 7, 16)
SUBSET = ("mlp", "residual_cnn", "conv1d", "vit_timm_class_token", "vit_mha", "shared", "folded")


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-6))


def ten_steps(case, built, engine, learning_rate):
    """Largest disagreement of (loss and metric, adapter, optimiser state) over ten steps."""
    step = built.step
    ours = dict(built.adapter)
    theirs = dict(built.adapter)
    state = {k: torch.zeros(step.adapter[k.partition("/")[2]]) for k in step.state}
    their_state = dict(state)
    worst = {"loss": 0.0, "adapter": 0.0, "state": 0.0}
    generator = torch.Generator().manual_seed(0)
    for number, size in enumerate(SIZES, start=1):
        rows = torch.randint(0, len(case.x), (size,), generator=generator)
        x, y, w = case.x[rows], case.y[rows], torch.ones(size)
        w[size // 2 :] = 0.5 if size > 1 else 1
        rate, count = torch.tensor(learning_rate), torch.tensor(float(number))
        values = {"x": x, "y": y, "w": w, "learning_rate": rate, "step": count}
        values |= {f"adapter/{k}": v for k, v in theirs.items()}
        values |= {f"optimizer/{k}": v for k, v in their_state.items()}
        found = engine(values)
        with torch.no_grad():
            loss, metric, ours, state = step.train(built.frozen, ours, state, x, y, w, rate, count)
        theirs = {k: found[f"next/adapter/{k}"] for k in ours}
        their_state = {k: found[f"next/optimizer/{k}"] for k in state}
        assert found["metric"].item() == pytest.approx(metric.item(), rel=1e-5, abs=1e-6)
        worst["loss"] = max(worst["loss"], relative(found["loss"], loss))
        worst["adapter"] = max(worst["adapter"], *(relative(theirs[k], ours[k]) for k in ours))
        for k in state:
            worst["state"] = max(worst["state"], relative(their_state[k], state[k]))
    return worst


def assert_parity(lab, name, *, optimizer="sgd", **options):
    case, built = lab.case(name), lab.built(name, optimizer=optimizer, **options)
    engine = lab.engine(built, "train")
    worst = ten_steps(case, built, engine, 0.05 if optimizer == "sgd" else 0.005)
    # Adam divides by the root of the second moment: where a gradient is near zero its rounding
    # error e becomes a relative error e / |g| of a whole step of the learning rate. The moments
    # themselves are sums of gradients and keep their accuracy; v is a sum of squares: twice it.
    # With |g| down to 1e-3 of its largest and e = 1e-7, a step is off by up to 1e-4 of itself.
    tolerance = 1e-5 if optimizer == "sgd" else 1e-4
    assert worst["loss"] < tolerance
    assert worst["adapter"] < tolerance
    assert worst["state"] < 2 * tolerance


def test_dfa_int8_sgd(lab, zoo_name):
    assert_parity(lab, zoo_name, base_dtype="int8")


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSET)
def test_backprop_float32_sgd(lab, name):
    assert_parity(lab, name, rule="backprop")


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "tokens"])
def test_dfa_float32_sgd(lab, name):
    assert_parity(lab, name)


@pytest.mark.parametrize("name", ["mlp", "vit_gpt", "framed"])
def test_backprop_int8_sgd(lab, name):
    assert_parity(lab, name, rule="backprop", base_dtype="int8")


@pytest.mark.parametrize(("name", "rule"), [("mlp", "dfa"), ("uint8_cnn", "backprop")])
def test_adam_int8(lab, name, rule):
    assert_parity(lab, name, rule=rule, base_dtype="int8", optimizer="adam")


@pytest.mark.parametrize(
    ("name", "rule"), [("mlp", "dfa"), ("folded", "dfa"), ("conv1d", "dfa"), ("conv1d", "backprop")]
)
def test_a_trained_a(lab, name, rule):
    assert_parity(lab, name, rule=rule, kind="lora")


@pytest.mark.parametrize("name", ["mlp", "vit_mha", "uint8_cnn"])
def test_evaluate_and_predict_int8(lab, name):
    case, built = lab.case(name), lab.stirred(lab.built(name, base_dtype="int8"))
    adapter = {f"adapter/{k}": v for k, v in built.adapter.items()}
    evaluate, predict = lab.engine(built, "evaluate"), lab.engine(built, "predict")
    for size in (1, 7, 24):
        x, y, w = case.x[:size], case.y[:size], torch.linspace(0.5, 1, size)
        with torch.no_grad():
            sums = built.step.evaluate(built.frozen, built.adapter, x, y, w)
            expected = built.step.predict(built.frozen, built.adapter, x)
        found = evaluate({"x": x, "y": y, "w": w, **adapter})
        for key, value in zip(("loss_sum", "metric_sum", "weight_sum"), sums, strict=True):
            assert relative(found[key], value) < 1e-5
        output = predict({"x": x, **adapter})["output"]
        assert relative(output, expected) < 1e-5
        torch.testing.assert_close(output.sum(1), torch.ones(size))


def test_the_labs_int8_base_is_the_compilers(lab):
    shortcut = lab.built("mlp", base_dtype="int8").frozen
    made = lab.build(lab.case("mlp"), base_dtype="int8").frozen
    assert shortcut.keys() == made.keys()
    for key, value in made.items():
        assert torch.equal(shortcut[key], value)
