"""What each feedback broadcasts, how it is stored, and what it is calibrated on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rootlet_server.compiler import CompileError
from rootlet_server.compiler.feedback import SHARED, positions_key
from rootlet_server.compiler.feedback_forms import feedback_matrix, form_keys, project, stored
from rootlet_server.compiler.jacobians import sparse_noise


def matrices(built):
    sites = built.step.learner.sites
    return {s.module: feedback_matrix(s.node, built.frozen, torch.float64) for s in sites}


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def test_features_feedback_is_the_mean_jacobian_of_the_features(lab):
    case, built = lab.case("mlp"), lab.built("mlp", feedback="calibrated_features")
    model = case.model
    after_second = F.elu(model.second(F.leaky_relu(model.first(case.x))))
    jacobian = torch.func.vmap(torch.func.jacrev(model.norm))(after_second).mean(0).detach()
    found = matrices(built)["second"]
    assert found.shape == (16, 16)
    assert relative(found.float(), jacobian) < 0.01  # int8


def test_features_feedback_follows_the_live_head(lab):
    case, built = lab.case("mlp"), lab.built("mlp", feedback="calibrated_features")
    doubled = dict(built.adapter) | {"head.weight": 2 * built.adapter["head.weight"]}
    moved = replace(built, adapter=doubled)
    x, y = case.x[:1], case.y[:1]
    frozen = {k: v.double() if v.is_floating_point() else v for k, v in built.frozen.items()}
    learner = built.step.learner.in_float64()
    gradients = lab.gradients(moved, "dfa", x, y, double=True)
    with torch.no_grad():
        adapter = {k: v.double() for k, v in doubled.items()}
        forward = learner.forward(frozen, adapter, x.double())
        error = forward.output.softmax(1) - F.one_hot(y, 5)
        site = next(s for s in learner.sites if s.module == "second")
        tap = forward.taps[site.node]
        delta = error @ adapter["head.weight"] @ matrices(built)["second"]
        delta = delta * site.chain.derivative(frozen, tap.output)
        assert relative(gradients["second.lora_B"], delta.t() @ tap.projected) < 1e-12


def test_the_last_hidden_layer_is_exact_through_the_features(lab):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 5))
    case = replace(lab.case("mlp"), model=model, x=torch.randn(16, 6), y=torch.arange(16) % 5)
    built = lab.stirred(lab.build(case, feedback="calibrated_features"))
    moved = {k: v + 0.3 if k == "2.weight" else v for k, v in built.adapter.items()}
    built = replace(built, adapter=moved)  # the head has learned since
    dfa, backprop = (
        lab.gradients(built, rule, case.x, case.y, double=True) for rule in ("dfa", "backprop")
    )
    for key, value in backprop.items():
        assert relative(dfa[key], value) < 1e-6, key  # an int8 identity is 127 * (1 / 127)


def test_sign_feedback_has_the_calibrated_signs_and_other_magnitudes(lab):
    calibrated, concordant = (
        matrices(lab.built("mlp", feedback=f)) for f in ("calibrated", "sign")
    )
    for module, matrix in calibrated.items():
        found = concordant[module]
        assert ((found * matrix) >= 0).all()
        assert (found != 0).float().mean() > 0.9
        assert relative(found / found.norm(), matrix / matrix.norm()) > 0.2


def test_broadcast_feedback_is_one_matrix_cut_to_width(lab):
    built = lab.built("mlp", feedback="broadcast")
    stored_here = [key for key in built.frozen if key.endswith("feedback.q")]
    assert stored_here == [form_keys(SHARED)[0]]
    assert built.frozen[stored_here[0]].shape == (5, 24)


def test_drtp_sends_the_targets_and_not_the_error(lab):
    case, built = lab.case("mlp"), lab.built("mlp", feedback="drtp")
    learner = built.step.learner
    first = lab.gradients(built, "dfa", case.x, case.y, double=True)
    bias = built.adapter["head.bias"] + torch.arange(5.0)
    moved = replace(built, adapter=built.adapter | {"head.bias": bias})  # another error
    again = lab.gradients(moved, "dfa", case.x, case.y, double=True)
    site = learner.sites[-1]
    name = f"{site.module}.lora_B"
    assert torch.equal(first[name], again[name])
    frozen = {k: v.double() if v.is_floating_point() else v for k, v in built.frozen.items()}
    with torch.no_grad():
        adapter = {k: v.double() for k, v in built.adapter.items()}
        tap = learner.in_float64().forward(frozen, adapter, case.x.double()).taps[site.node]
        delta = -F.one_hot(case.y, 5).double() @ matrices(built)[site.module] / len(case.x)
        delta = delta * site.chain.derivative(frozen, tap.output)
        assert relative(first[name], delta.t() @ tap.projected) < 1e-12


def test_the_sign_form_keeps_each_rows_mean_magnitude():
    torch.manual_seed(0)
    matrix = torch.randn(4, 9)
    kept = stored("p", matrix, "sign")
    expected = matrix.sign() * matrix.abs().mean(1, keepdim=True)
    torch.testing.assert_close(feedback_matrix("p", kept, torch.float32), expected)
    assert kept["p:feedback.q"].dtype == torch.int8


@pytest.mark.parametrize("rank", [2, 4, 40])
def test_the_low_rank_form_is_the_best_of_its_rank(rank):
    torch.manual_seed(0)
    matrix = torch.randn(4, 30)
    kept = stored("p", matrix, "low_rank", rank)
    singular = torch.linalg.svdvals(matrix)
    best = singular[rank:].square().sum().sqrt() / matrix.norm()
    found = feedback_matrix("p", kept, torch.float32)
    assert relative(found, matrix) == pytest.approx(float(best), abs=0.01)
    signal = torch.randn(3, 4)
    torch.testing.assert_close(project("p", kept, signal), signal @ found)
    assert kept["p:feedback.left"].shape == (4, min(rank, 4))


def test_noise_is_sparse_and_in_the_range_of_the_inputs():
    noise = sparse_noise(torch.tensor([[-1.0, 0.5, 3.0]]).expand(2, 3), seed=0, examples=4000)
    assert noise.shape == (4000, 3)
    assert -1 <= noise.min() < -0.9
    assert 2.9 < noise.max() <= 3
    assert float((noise == 0).float().mean()) == pytest.approx(0.75, abs=0.02)
    ids = sparse_noise(torch.tensor([[3, 9]]), seed=0)
    assert set(ids.flatten().tolist()) == set(range(3, 10))
    image = sparse_noise(torch.tensor([[0, 255]], dtype=torch.uint8), seed=0)
    assert image.dtype == torch.uint8


def test_calibration_on_noise_reads_only_the_range_of_the_data(lab):
    case = lab.case("mlp")
    shuffled = case.x.flatten()[torch.randperm(case.x.numel())].view_as(case.x)
    built, other = (
        lab.build(replace(case, x=x), calibration="noise").frozen for x in (case.x, shuffled)
    )
    added = [key for key in built if "feedback" in key or "lora_A" in key]
    assert added
    for key in added:
        assert torch.equal(built[key], other[key]), key
    cosines = [
        F.cosine_similarity(a.flatten(), b.flatten(), 0)
        for a, b in zip(
            matrices(lab.build(case, calibration="noise")).values(),
            matrices(lab.built("mlp")).values(),
            strict=True,
        )
    ]
    assert min(cosines) > 0.8


def test_a_matrix_for_each_position_is_exact_where_a_head_reads_each(lab):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv1d(3, 6, 1), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(24, 5)
    )
    case = replace(lab.case("mlp"), model=model, x=torch.randn(12, 3, 4), y=torch.arange(12) % 5)
    errors = {}
    for positions in ("shared", "each"):
        built = lab.stirred(lab.build(case, feedback_positions=positions))
        dfa, backprop = (
            lab.gradients(built, rule, case.x, case.y, double=True) for rule in ("dfa", "backprop")
        )
        errors[positions] = relative(dfa["0.lora_B"], backprop["0.lora_B"])
    assert errors["each"] < 0.02  # int8
    assert errors["shared"] > 0.5


def test_the_matrices_of_all_positions_add_up_to_the_shared_one(lab):
    case = lab.case("vit_gpt")
    shared, each = lab.built("vit_gpt"), lab.build(case, feedback_positions="each")
    for site in shared.step.learner.sites:
        matrix = feedback_matrix(site.node, each.frozen, torch.float32)
        assert matrix.shape == (5, site.positions * site.width)
        total = matrix.unflatten(1, (site.positions, site.width)).sum(1)
        assert relative(total, feedback_matrix(site.node, shared.frozen, torch.float32)) < 0.03
        assert positions_key(site.node) not in each.frozen


@pytest.mark.parametrize(
    ("name", "feedback"), [("residual_cnn", "calibrated_features"), ("vit_gpt", "drtp")]
)
def test_factors_add_up_and_position_weights_sum_to_one(lab, name, feedback):
    case, built = lab.case(name), lab.stirred(lab.built(name, feedback=feedback))
    expected = lab.gradients(built, "dfa", case.x[:3], case.y[:3], double=True)
    alone = [
        lab.gradients(built, "dfa", case.x[n : n + 1], case.y[n : n + 1], double=True)
        for n in range(3)
    ]
    for key, value in expected.items():
        assert relative(sum(each[key] for each in alone) / 3, value) < 1e-12
    for site in built.step.learner.sites:
        if site.positions > 1:
            assert float(built.frozen[positions_key(site.node)].sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"feedback": "drtp"}),
        ("residual_cnn", {"feedback": "calibrated_features"}),
        ("vit_gpt", {"feedback": "broadcast"}),
        ("vit_gpt", {"feedback_form": "low_rank", "feedback_rank": 2}),
        ("residual_cnn", {"feedback_form": "sign", "calibration": "noise"}),
        ("vit_gpt", {"feedback_positions": "each"}),
    ],
)
def test_the_graph_in_the_devices_engine_is_the_step(lab, name, options):
    case, built = lab.case(name), lab.stirred(lab.built(name, **options))
    x, y, w, rate = case.x[:5], case.y[:5], torch.ones(5), torch.tensor(0.1)
    found = lab.engine(built, "train")(
        {"x": x, "y": y, "w": w, "learning_rate": rate}
        | {f"adapter/{k}": v for k, v in built.adapter.items()}
    )
    with torch.no_grad():
        _, _, adapter, _ = built.step.train(built.frozen, built.adapter, {}, x, y, w, rate)
    for key, value in adapter.items():
        assert relative(found[f"next/adapter/{key}"], value) < 1e-5, key


@pytest.mark.parametrize(
    "options",
    [
        {"feedback": "symmetric"},
        {"feedback_form": "int4"},
        {"calibration": "x"},
        {"feedback_rank": 0},
    ],
)
def test_what_is_not_there_is_refused(lab, options):
    with pytest.raises(CompileError, match=next(iter(options))):
        lab.config(**options)
