"""Writes ``litert/sgd.tflite`` and ``litert/adam.tflite``: the tests' small bundle, for LiteRT.

    python tests/vectors/make_litert_models.py [FOLDER]

Needs the extra ``litert-export``. The functions are those that ``tests/device_runtime/conftest.py``
writes in ONNX by hand: softmax regression on a frozen projection, h = tanh(x P), z = h W^T + b.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import litert_torch
import numpy as np
import torch
from torch import Tensor, nn

from rootlet_runtime.tflite_check import signature_key
from rootlet_server.compiler.litert_pack import pack

HERE = Path(__file__).parent
BATCHES = (1, 8)
TINY = runpy.run_path(str(HERE.parent / "device_runtime" / "conftest.py"))
D, F, K = TINY["D"], TINY["F"], TINY["K"]


class Signature(nn.Module):
    """A function of the named inputs of one graph."""

    def __init__(self, names: tuple[str, ...], function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.names, self.function, self.training = names, function, False

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        return self.function(dict(zip(self.names, args, strict=True)))


def functions(p_DF: Tensor, optimizer: str) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """The three graphs, each from named inputs to its outputs in order."""

    def forward(v: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        h = torch.tanh(v["x"] @ p_DF)
        return h, h @ v["adapter/head.weight"].t() + v["adapter/head.bias"]

    def sums(v: dict[str, Tensor], z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        onehot = (v["y"].unsqueeze(1) == torch.arange(K)).float()
        loss = -(z.log_softmax(1) * onehot).sum(1)
        metric = (z.argmax(1) == v["y"]).float()
        w = v["w"]
        return (loss * w).sum(), (metric * w).sum(), w.sum(), z.softmax(1) - onehot

    def train(v: dict[str, Tensor]) -> tuple[Tensor, ...]:
        h, z = forward(v)
        loss, metric, weight, derivative = sums(v, z)
        error = derivative * (v["w"] / weight).unsqueeze(1)
        gradients = {"head.weight": error.t() @ h, "head.bias": error.sum(0)}
        adapter, slots = {}, {"m": {}, "v": {}}
        for name, g in gradients.items():
            p = v[f"adapter/{name}"]
            if optimizer == "sgd":
                adapter[name] = p - v["learning_rate"] * g
                continue
            beta1, beta2 = TINY["BETA_1"], TINY["BETA_2"]
            m = beta1 * v[f"optimizer/m/{name}"] + (1 - beta1) * g
            second = beta2 * v[f"optimizer/v/{name}"] + (1 - beta2) * g * g
            slots["m"][name], slots["v"][name] = m, second
            first = m / (1 - beta1 ** v["step"])
            scale = (second / (1 - beta2 ** v["step"])).sqrt() + TINY["EPS"]
            adapter[name] = p - v["learning_rate"] * first / scale
        state = (slot[name] for slot in slots.values() for name in slot)
        return loss / weight, metric / weight, *adapter.values(), *state

    return {
        "train": train,
        "evaluate": lambda v: sums(v, forward(v)[1])[:3],
        "predict": lambda v: (forward(v)[1].softmax(1),),
    }


def make_model(optimizer: str) -> bytes:
    """The ``.tflite`` of the small bundle with this optimiser."""
    manifest, files = TINY["make_files"](optimizer)
    p_DF = torch.from_numpy(np.frombuffer(files["base.bin"][64:], np.float32).reshape(D, F).copy())
    converter, names = litert_torch.Converter(), {}
    for role, function in functions(p_DF, optimizer).items():
        spec = manifest.graphs[role]
        for batch in BATCHES:
            samples = []
            for name in spec.inputs:
                tensor = manifest.inputs[name]
                shape = [batch if size is None else size for size in tensor.shape]
                samples.append(torch.ones(shape, dtype=getattr(torch, tensor.dtype)))
            key = signature_key(role, batch)
            converter.add_signature(key, Signature(spec.inputs, function), tuple(samples))
            names[key] = (spec.inputs, spec.outputs)
    return pack(bytes(converter.convert().model_content()), names)


def main(folder: Path) -> None:
    """Writes both models."""
    folder.mkdir(exist_ok=True)
    for optimizer in ("sgd", "adam"):
        (folder / f"{optimizer}.tflite").write_bytes(make_model(optimizer))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "litert")
