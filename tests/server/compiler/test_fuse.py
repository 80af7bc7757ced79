"""The update of a matrix is one product that accumulates, and it is the same update."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from rootlet_server.compiler.fuse import fuse_updates


def update(out, inner, *, shared=False):
    """``p - learning_rate (d^T z)`` as the exporter writes it; ``shared`` also returns d^T z."""
    nodes = [
        helper.make_node("Transpose", ["d"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["turned", "z"], ["product"]),
        helper.make_node("Mul", ["learning_rate", "product"], ["rated"]),
        helper.make_node("Sub", ["p", "rated"], ["next"]),
    ]
    shapes = {"d": ["n", out], "z": ["n", inner], "p": [out, inner], "learning_rate": []}
    inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in shapes.items()]
    names = ["next", "product"] if shared else ["next"]
    outputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, [out, inner]) for k in names]
    graph = helper.make_graph(nodes, "update", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, feed):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["next"], feed)[0]


def test_an_update_is_one_product_with_the_rate_on_the_narrower_factor():
    generator = np.random.default_rng(0)
    for out, inner, wide in ((6, 2, "d"), (2, 6, "z")):
        plain, fused = update(out, inner), update(out, inner)
        fuse_updates(fused)
        assert Counter(n.op_type for n in fused.graph.node) == {"Mul": 1, "Gemm": 1}
        assert wide not in fused.graph.node[0].input
        onnx.checker.check_model(fused)
        feed = {
            "d": generator.standard_normal((5, out)).astype(np.float32),
            "z": generator.standard_normal((5, inner)).astype(np.float32),
            "p": generator.standard_normal((out, inner)).astype(np.float32),
            "learning_rate": np.array(0.3, np.float32),
        }
        np.testing.assert_allclose(run(fused, feed), run(plain, feed), rtol=1e-5, atol=1e-6)
        expected = feed["p"] - 0.3 * feed["d"].T @ feed["z"]
        np.testing.assert_allclose(run(fused, feed), expected, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_read_elsewhere_is_left_as_it_is():
    model = update(6, 2, shared=True)
    before = model.SerializeToString()
    fuse_updates(model)
    assert model.SerializeToString() == before


def test_every_matrix_of_a_step_of_sgd_is_updated_by_one_product(lab):
    engine = lab.engine(lab.built("mlp"), "train")
    found = Counter(n.op_type for n in engine.model.graph.node)
    assert found["Sub"] == 2  # the error, softmax less target; and the head's bias
    rated = [n for n in engine.model.graph.node if n.op_type == "Gemm" and len(n.input) == 3]
    assert sum(n.output[0].startswith("next/adapter/") for n in rated) == 3
