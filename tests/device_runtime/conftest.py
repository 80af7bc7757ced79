"""A small but real bundle, built by hand: softmax regression on a frozen projection.

    h_BF = tanh(x_BD P_DF)        P in base.bin
    z_BK = h_BF W_KF^T + b_K      W = head.weight, b = head.bias: the adapter
    loss = sum_B w_B CE(z_B, y_B) / sum_B w_B

B batch, D inputs, F features, K classes. The gradient is (softmax(z) - onehot(y)) w / sum w.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from onnx import TensorProto, helper

from rootlet_runtime import (
    Bundle,
    GraphSpec,
    Manifest,
    TensorSpec,
    Trainer,
    TrainingDefaults,
    write_bundle,
)
from rootlet_runtime.optimizers import resolve_hyperparameters

settings.register_profile("rootlet", deadline=None)
settings.load_profile("rootlet")

D, F, K = 4, 6, 3
BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-7
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
HEAD = {"head.weight": (K, F), "head.bias": (K,)}


class GraphWriter:
    """Collects nodes and constants; each call returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(
        self, operator: str, *inputs: str, out: str | None = None, **attributes: Any
    ) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        array = np.asarray(value, dtype)
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> bytes:
        def values(specs: dict[str, Any]) -> list[Any]:
            return [helper.make_tensor_value_info(n, t, s) for n, (t, s) in specs.items()]

        graph = helper.make_graph(
            self.nodes, "g", values(inputs), values(outputs), [*self.constants, projection()]
        )
        opsets = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def projection() -> Any:
    tensor = TensorProto(name="P", data_type=FLOAT, dims=[D, F], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "base.bin"), ("offset", "64"), ("length", str(4 * D * F))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def forward(g: GraphWriter) -> tuple[str, str]:
    h = g("Tanh", g("MatMul", "x", "P"))
    return h, g("Gemm", h, "adapter/head.weight", "adapter/head.bias", transB=1)


def cross_entropy(g: GraphWriter, z: str) -> tuple[str, str, str]:
    """Loss and accuracy of each example, and the loss's derivative by z."""
    onehot = g("OneHot", "y", g.constant(K, np.int64), g.constant([0, 1]))
    chosen = g("Mul", g("LogSoftmax", z), onehot)
    loss = g("Neg", g("ReduceSum", chosen, g.constant([1], np.int64), keepdims=0))
    right = g("Cast", g("Equal", g("ArgMax", z, axis=1, keepdims=0), "y"), to=FLOAT)
    return loss, right, g("Sub", g("Softmax", z), onehot)


def squared_error(g: GraphWriter, z: str) -> tuple[str, str, str]:
    """Mean squared error of each example, twice, and its derivative by z."""
    error = g("Sub", z, "y")
    loss = g("ReduceMean", g("Mul", error, error), g.constant([1], np.int64), keepdims=0)
    return loss, loss, g("Mul", error, g.constant(2 / K))


def weighted_sums(g: GraphWriter, z: str, task: str) -> str:
    """Writes the outputs of ``evaluate``; returns the derivative by z."""
    loss, metric, derivative = (cross_entropy if task == "classification" else squared_error)(g, z)
    g("ReduceSum", g("Mul", loss, "w"), keepdims=0, out="loss_sum")
    g("ReduceSum", g("Mul", metric, "w"), keepdims=0, out="metric_sum")
    g("ReduceSum", "w", keepdims=0, out="weight_sum")
    return derivative


def sgd(g: GraphWriter, name: str, gradient: str) -> None:
    update = g("Mul", gradient, "learning_rate")
    g("Sub", f"adapter/{name}", update, out=f"next/adapter/{name}")


def adam(g: GraphWriter, name: str, gradient: str) -> None:
    one, corrected = g.constant(1), []
    for slot, beta, power in (("m", BETA_1, gradient), ("v", BETA_2, g("Mul", gradient, gradient))):
        kept = g("Mul", f"optimizer/{slot}/{name}", g.constant(beta))
        moment = g(
            "Add", kept, g("Mul", power, g.constant(1 - beta)), out=f"next/optimizer/{slot}/{name}"
        )
        corrected.append(g("Div", moment, g("Sub", one, g("Pow", g.constant(beta), "step"))))
    scale = g("Add", g("Sqrt", corrected[1]), g.constant(EPS))
    update = g("Mul", "learning_rate", g("Div", corrected[0], scale))
    g("Sub", f"adapter/{name}", update, out=f"next/adapter/{name}")


def graphs(optimizer: str, task: str) -> tuple[dict[str, bytes], dict[str, GraphSpec]]:
    x, w = (FLOAT, ["B", D]), (FLOAT, ["B"])
    y = (INT64, ["B"]) if task == "classification" else (FLOAT, ["B", K])
    head = {f"adapter/{name}": (FLOAT, shape) for name, shape in HEAD.items()}
    slots = ("m", "v") if optimizer == "adam" else ()
    state = {f"optimizer/{s}/{n}": (FLOAT, shape) for s in slots for n, shape in HEAD.items()}
    scalar = (FLOAT, [])

    train = GraphWriter()
    h, logits = forward(train)
    derivative = weighted_sums(train, logits, task)
    train("Div", "loss_sum", "weight_sum", out="loss")
    train("Div", "metric_sum", "weight_sum", out="metric")
    share = train("Unsqueeze", train("Div", "w", "weight_sum"), train.constant([1], np.int64))
    error = train("Mul", derivative, share)
    rule = adam if optimizer == "adam" else sgd
    rule(train, "head.weight", train("Gemm", error, h, transA=1))
    rule(train, "head.bias", train("ReduceSum", error, train.constant([0], np.int64), keepdims=0))

    evaluate = GraphWriter()
    weighted_sums(evaluate, forward(evaluate)[1], task)
    predict = GraphWriter()
    last = "Softmax" if task == "classification" else "Identity"
    predict(last, forward(predict)[1], out="output")

    step = {"step": scalar} if optimizer == "adam" else {}
    rate = {"learning_rate": scalar} | step
    ends: dict[str, tuple[GraphWriter, dict[str, Any], dict[str, Any]]] = {
        "train": (
            train,
            {"x": x, "y": y, "w": w} | rate | head | state,
            {"loss": scalar, "metric": scalar}
            | {f"next/{n}": v for n, v in (head | state).items()},
        ),
        "evaluate": (
            evaluate,
            {"x": x, "y": y, "w": w} | head,
            dict.fromkeys(("loss_sum", "metric_sum", "weight_sum"), scalar),
        ),
        "predict": (predict, {"x": x} | head, {"output": (FLOAT, ["B", K])}),
    }
    files = {f"{role}.onnx": g.model(ins, outs) for role, (g, ins, outs) in ends.items()}
    specs = {
        role: GraphSpec(file=f"{role}.onnx", inputs=tuple(ins), outputs=tuple(outs))
        for role, (_, ins, outs) in ends.items()
    }
    return files, specs


def make_files(optimizer: str, task: str = "classification") -> tuple[Manifest, dict[str, bytes]]:
    rng = np.random.default_rng(7)
    models, specs = graphs(optimizer, task)
    classes = task == "classification"
    head = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in HEAD.items()}
    slots = ("m", "v") if optimizer == "adam" else ()
    manifest = Manifest(
        name="tiny-softmax",
        version=3,
        created_at="2026-11-01T00:00:00Z",
        expires_at="2036-11-01T00:00:00Z",
        task=task,
        rule="backprop",
        adapter_kind="lora",
        rank=0,
        alpha=1.0,
        base_dtype="float32",
        optimizer=optimizer,
        max_batch=32,
        x=TensorSpec(name="x", dtype="float32", shape=(None, D)),
        y=TensorSpec(
            name="y",
            dtype="int64" if classes else "float32",
            shape=(None,) if classes else (None, K),
        ),
        num_outputs=K,
        labels=("a", "b", "c") if classes else None,
        adapter=tuple(TensorSpec(name=n, dtype="float32", shape=s) for n, s in HEAD.items()),
        optimizer_state=tuple(
            TensorSpec(name=f"{slot}/{n}", dtype="float32", shape=s)
            for slot in slots
            for n, s in HEAD.items()
        ),
        graphs=specs,
        hyperparameters=resolve_hyperparameters(optimizer, {}),
        training=TrainingDefaults(
            learning_rate=0.1, batch_size=8, epochs=1, decay="constant", warmup=0.0
        ),
        cost={"train_macs_float32": D * F + 2 * F * K, "weight_bytes": 4 * D * F},
        licence="CC0-1.0",
        data_origin="random numbers",
    )
    files = models | {
        "adapter.safetensors": safetensors.numpy.save(head),
        "base.bin": bytes(64) + rng.normal(0, 1, (D, F)).astype(np.float32).tobytes(),
    }
    return manifest, files


@pytest.fixture(scope="session")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., tuple[Manifest, dict[str, bytes]]]:
    """``tiny(optimizer, task)``: the manifest and files of the small bundle."""
    return make_files


@pytest.fixture(scope="session")
def bundle_paths(
    tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for optimizer in ("sgd", "adam"):
        write_bundle(folder / f"{optimizer}.rootlet", *make_files(optimizer), key)
    write_bundle(folder / "regression.rootlet", *make_files("sgd", "regression"), key)
    return {name: folder / f"{name}.rootlet" for name in ("sgd", "adam", "regression")}


@pytest.fixture(params=["sgd", "adam"])
def bundle(
    request: pytest.FixtureRequest, bundle_paths: dict[str, Path], key: Ed25519PrivateKey
) -> Bundle:
    return Bundle.load(bundle_paths[request.param], trusted_keys=[key.public_key()])


@pytest.fixture
def trainer(bundle: Bundle) -> Trainer:
    return Trainer(bundle)


@pytest.fixture(scope="session")
def examples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(37, D)).astype(np.float32), rng.integers(0, K, 37)
