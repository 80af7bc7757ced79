"""Models through the compiler and litert-torch, then both engines from the one bundle.

Run by ``.ci/run`` in an environment of its own, with the extras ``server`` and ``litert-export``.
``ROOTLET_LITERT_BUNDLES`` names a folder that keeps the bundles, for ``tests/litert_bundles``.
"""

import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rootlet_runtime import Bundle
from rootlet_runtime.engines import open_engine
from rootlet_runtime.errors import MissingExtraError
from rootlet_runtime.state import TrainState
from rootlet_server.compiler import CompileConfig, LoraConfig, compile_bundle, export_litert
from rootlet_server.compiler.config import PrivacyConfig
from rootlet_server.compiler.errors import CompileError, ExportError

TESTS = Path(__file__).parents[1]
ZOO = runpy.run_path(str(TESTS / "server" / "compiler" / "conftest.py"))["make_case"]
LITERT = runpy.run_path(str(TESTS / "litert" / "conftest.py"))
COMPARE, RANDOM_BATCH = LITERT["disagreement"], LITERT["random_batch"]

pytestmark = pytest.mark.timeout(900)  # seconds on a quiet machine, minutes on a busy one

# Model, rule, base and optimiser of each bundle, by its name.
BUNDLES = {
    "mlp-dfa-int8-sgd": ("mlp", "dfa", "int8", "sgd"),
    "mlp-backprop-int8-adam": ("mlp", "backprop", "int8", "adam"),
    "transformer-dfa-int8-sgd": ("vit_mha", "dfa", "int8", "sgd"),
    "transformer-backprop-float32-sgd": ("vit_mha", "backprop", "float32", "sgd"),
    "cnn-dfa-int8-sgd": ("uint8_cnn", "dfa", "int8", "sgd"),
    "cnn-backprop-float32-sgd": ("uint8_cnn", "backprop", "float32", "sgd"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    kept = os.environ.get("ROOTLET_LITERT_BUNDLES")
    path = Path(kept) if kept else tmp_path_factory.mktemp("bundles")
    path.mkdir(parents=True, exist_ok=True)
    return path


def compile_case(name, path, **options):
    torch.set_num_threads(1)
    case = ZOO(name)
    return compile_bundle(
        case.model,
        calibration_x=case.x,
        config=CompileConfig(adapter=LoraConfig(rank=4), max_batch=32, **options),
        name="converted",
        version=1,
        signing_key=None,
        out=path,
    )


@pytest.mark.parametrize("name", BUNDLES)
def test_ten_steps_agree(name, folder):
    model, rule, base_dtype, optimizer = BUNDLES[name]
    path = folder / f"{name}.rootlet"
    options = {"rule": rule, "base_dtype": base_dtype, "optimizer": optimizer}
    compiled = compile_case(model, path, litert_batches=(8,), **options)
    # of a norm; a gradient of a convolution is a sum over 256 positions and 8 examples
    assert compiled.worst_disagreement < 5e-5
    bundle = Bundle.load(path, trusted_keys=[], allow_unsigned=True)
    found = COMPARE(bundle, 0.05 if optimizer == "sgd" else 0.005)
    # Adam's first steps have the rate's length and the gradient's sign: see test_export_parity.
    tolerance = 1e-5 if optimizer == "sgd" else 1e-4
    assert max(found.loss, found.adapter, found.evaluate, found.predict) < tolerance
    assert found.optimizer < 2 * tolerance


def test_what_cannot_be_written_in_builtin_operators_is_refused(tmp_path):
    """The gradient of a max pool is a scatter, which LiteRT has not; nothing is written."""
    path = tmp_path / "pooled.rootlet"
    options = {"rule": "backprop", "base_dtype": "float32", "litert_batches": (4,)}
    with pytest.raises(ExportError, match=r"not on the allow-list.*Leave litert_batches out"):
        compile_case("residual_cnn", path, **options)
    assert not path.exists()


def test_a_missing_converter_names_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rootlet\[server,litert-export\]'"):
        export_litert.require_converter()
    with pytest.raises(MissingExtraError):
        compile_case("mlp", tmp_path / "none.rootlet", litert_batches=(4,))


@pytest.mark.parametrize("batches", [(0,), (8, 4), (4, 4), (33,)])
def test_impossible_batches_are_refused(batches):
    with pytest.raises(CompileError, match="litert_batches"):
        CompileConfig(litert_batches=batches, max_batch=32)


# the converter's own
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
def test_the_committed_models_are_what_their_script_writes(tmp_path):
    script = runpy.run_path(str(TESTS / "vectors" / "make_litert_models.py"))
    script["main"](tmp_path)
    for name in ("sgd", "adam"):
        committed = TESTS / "vectors" / "litert" / f"{name}.tflite"
        assert (tmp_path / f"{name}.tflite").read_bytes() == committed.read_bytes()


def test_the_clipped_sums_of_a_private_step_agree(tmp_path):
    path = tmp_path / "private.rootlet"
    compile_case("mlp", path, privacy=PrivacyConfig(), litert_batches=(8,))
    bundle = Bundle.load(path, trusted_keys=[], allow_unsigned=True)
    # 20 examples: one batch in ONNX Runtime, three padded pieces in LiteRT.
    batch = RANDOM_BATCH(bundle.manifest, 20, np.random.default_rng(2))
    batch = replace(batch, w=(np.arange(20) % 3 > 0).astype(np.float32))
    state = TrainState(adapter=bundle.initial_adapter(), optimizer={})
    found = []
    for name in ("onnxruntime", "litert"):
        engine = open_engine(name, bundle, 1)
        engine.load_state(state)
        found.append(engine.gradients(batch, 0.1))
    onnx, litert = found
    assert litert.keys() == onnx.keys()
    for name, value in onnx.items():
        np.testing.assert_allclose(litert[name], value, rtol=1e-5, atol=1e-6)
