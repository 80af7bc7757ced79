"""What exporters do silently: drop a small epsilon, add foreign operators, leak the machine."""

from __future__ import annotations

import copy
import getpass
import platform
from dataclasses import replace

import onnx
import pytest
import torch

from rootlet_runtime import signing
from rootlet_server.compiler import CompileConfig, ExportError, LoraConfig, compile_bundle
from rootlet_server.compiler.export_onnx import share_weights
from rootlet_server.compiler.verify import disagreement, verify_export


@pytest.fixture(scope="module")
def adam(lab):
    built = lab.built("mlp", base_dtype="int8", optimizer="adam")
    return built, lab.engine(built, "train")


def test_adams_epsilon_survives_the_export(lab, adam):
    built, engine = adam
    case = lab.case("mlp")
    state = {f"optimizer/{k}": torch.zeros(built.step.adapter[k[2:]]) for k in built.step.state}
    values = {"x": case.x, "y": case.y, "w": torch.zeros(24), "learning_rate": torch.tensor(0.1)}
    values |= state | {f"adapter/{k}": v for k, v in built.adapter.items()}
    for number in range(1, 21):  # without epsilon: 0 / 0 in the first step
        found = engine({**values, "step": torch.tensor(float(number))})
        values |= {k.removeprefix("next/"): v for k, v in found.items() if k.startswith("next/")}
    for name, value in built.adapter.items():
        assert torch.equal(values[f"adapter/{name}"], value)


def test_only_standard_operators_and_no_notes(adam):
    _, engine = adam
    model = onnx.load_from_string(engine.graph)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert not model.metadata_props
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not model.graph.metadata_props
    for item in (*model.graph.node, *model.graph.input, *model.graph.output):
        assert not item.doc_string
        assert not item.metadata_props


def test_nothing_of_this_machine_is_in_the_bytes(adam):
    _, engine = adam
    secrets = {torch.__file__, __file__, platform.node(), torch.__version__, ".py", "site-packages"}
    secrets |= {f"/{getpass.getuser()}/", "/tmp/", "rootlet_server"}  # noqa: S108
    for secret in secrets:
        assert secret.encode() not in engine.graph, secret


def test_weights_are_in_one_block_and_equal_ones_stored_once(adam):
    _, engine = adam
    graphs, block = share_weights(
        {role: copy.deepcopy(engine.model) for role in ("train", "predict")}
    )
    places = {}
    for graph in graphs.values():
        for tensor in onnx.load_from_string(graph).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert len(onnx.numpy_helper.to_array(tensor).tobytes()) < 256
                continue
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry.keys() == {"location", "offset", "length"}
            assert entry["location"] == "base.bin"
            assert int(entry["offset"]) % 64 == 0
            places[int(entry["offset"])] = int(entry["length"])
    pieces = [block[o : o + n] for o, n in places.items()]
    assert len(set(pieces)) == len(pieces) > 2
    assert len(block) < sum(places.values()) + 64 * len(places)


def test_equal_tensors_of_two_models_share_their_place():
    def model(name, value):
        tensor = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [100], [value] * 100)
        return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))

    models = {"train": model("a", 1.0), "evaluate": model("b", 1.0), "predict": model("c", 2.0)}
    _, block = share_weights(models)
    assert len(block) == 448 + 400  # 400 bytes, padded to 64, and 400 more


def test_the_self_check_refuses_a_tampered_graph(lab):
    built = lab.built("mlp")
    engines = {role: lab.engine(built, role) for role in ("train", "evaluate", "predict")}
    graphs, block = share_weights({r: copy.deepcopy(e.model) for r, e in engines.items()})
    checked = {role: (graphs[role], e.captured) for role, e in engines.items()}
    assert verify_export(built, checked, block) < 1e-5

    other = bytearray(block)
    other[3] ^= 0x40  # the exponent of the first weight
    with pytest.raises(ExportError, match=r"off by .* of its norm"):
        verify_export(built, checked, bytes(other))
    twice = replace(built, adapter={k: 2 * v for k, v in built.adapter.items()})
    moved = replace(twice, step=replace(twice.step, learner=replace(built.step.learner, scale=4.0)))
    with pytest.raises(ExportError, match="nothing was written"):
        verify_export(moved, checked, block)


def test_disagreement_is_norm_wise():
    expected = torch.tensor([3.0, 4.0])
    assert disagreement(expected, expected.numpy()) == 0
    assert disagreement(expected, torch.tensor([3.0, 4.5]).numpy()) == pytest.approx(0.1)
    assert disagreement(expected, torch.tensor([3.0, float("nan")]).numpy()) == float("inf")


def test_a_bundle_is_made_and_its_manifest_tells_what_it_is(lab, tmp_path):
    case = lab.case("mlp")
    key, _ = signing.generate_keypair()
    said = []
    compiled = compile_bundle(
        case.model,
        calibration_x=case.x.numpy(),
        config=CompileConfig(
            rule="dfa", adapter=LoraConfig(rank=4, alpha=12), labels=tuple("abcde")
        ),
        name="zoo",
        version=3,
        signing_key=key,
        out=tmp_path / "zoo.rootlet",
        progress=said.append,
    )
    manifest = compiled.manifest
    assert compiled.path.is_file()
    assert compiled.worst_disagreement < 1e-5
    assert (manifest.rule, manifest.feedback, manifest.rank, manifest.alpha) == (
        "dfa", "calibrated", 4, 12,
    )  # fmt: skip
    assert [spec.name for spec in manifest.adapter] == [
        "first.lora_B", "second.lora_B", "head.weight", "head.bias",
    ]  # fmt: skip
    assert manifest.cost["predict_macs_int8"] == 12 * 24 + 24 * 16 + (12 + 24) * 4  # and A
    assert manifest.cost["train_macs_float32"] > manifest.cost["predict_macs_float32"]
    assert said[0] == "tracing and calibrating"
