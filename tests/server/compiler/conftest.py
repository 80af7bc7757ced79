"""A zoo of small models that covers what the compiler accepts, and the engine that devices use.

Shape legend: N examples, T tokens, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootlet_runtime.engines.onnx import AS_WRITTEN
from rootlet_server.compiler import Built, CompileConfig, LoraConfig, build
from rootlet_server.compiler.adapters import in_int8 as a_in_int8
from rootlet_server.compiler.base import freeze
from rootlet_server.compiler.capture import capture
from rootlet_server.compiler.conv_ranges import conv_ranges
from rootlet_server.compiler.export_onnx import share_weights, to_onnx
from rootlet_server.compiler.rules import RULES, Batch, Credit

CLASSES = 5


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.elu(self.second(F.leaky_relu(self.first(x))))))


class ResidualCnn(nn.Module):
    """Strided, depthwise and 1x1 convolutions, both norms, squeeze and excitation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.expand, self.norm2 = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project, self.norm3 = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.mix, self.group = nn.Conv2d(8, 12, 1), nn.GroupNorm(3, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        y = F.relu6(self.norm2(self.depthwise(F.silu(self.expand(x)))))
        y = self.norm3(self.project(y))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = F.max_pool2d(x + y, 2)
        return self.head(F.avg_pool2d(self.group(self.mix(x)), 2).flatten(1))


class Conv1dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(3, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.GELU(),
            nn.Conv1d(8, 12, 1), nn.BatchNorm1d(12), nn.Tanh(), nn.AvgPool1d(2),
            nn.Flatten(), nn.Linear(48, 16), nn.PReLU(16), nn.Linear(16, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def split_heads(x: Tensor, heads: int) -> Tensor:
    n, t, d = x.shape
    return x.view(n, t, heads, d // heads).transpose(1, 2)


class HandAttention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(d, d), nn.Linear(d, d)
        self.value, self.out = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p(x), self.heads) for p in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class GptAttention(nn.Module):
    """One packed projection, split in three; a causal mask."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (split_heads(p, self.heads) for p in self.qkv(x).split(d, dim=2))
        mask = torch.full((t, t), -1e9).triu(1)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + mask).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).contiguous().view(n, t, d))


class TimmAttention(nn.Module):
    """One packed projection, taken apart by reshape, permute and unbind; torch's fused product."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, t, d))


class TorchAttention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(d, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x)[0]


class Block(nn.Module):
    def __init__(self, attention: nn.Module, d: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.attention, self.act = attention, act
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.act(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self, attention: type[nn.Module], pool: str) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 4, stride=4)
        self.position = nn.Parameter(0.1 * torch.randn(1, 5 if pool == "class" else 4, 16))
        self.class_token = nn.Parameter(torch.randn(1, 1, 16)) if pool == "class" else None
        self.block = Block(attention(16, 2), 16, F.gelu)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.block(x + self.position))
        return self.head(x.mean(1) if self.class_token is None else x[:, 0])


class Tokens(nn.Module):
    """Embedding and position embedding by a buffer of indices; padding (token 0) is masked out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(30, 16), nn.Embedding(6, 16)
        self.register_buffer("indices", torch.arange(6))
        self.block = Block(GptAttention(16, 2), 16, F.silu)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.block(self.embedding(tokens) + self.position(self.indices))
        kept = (tokens != 0).float().unsqueeze(-1)
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1))


class Encoder(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(30, 16)
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.1, activation="gelu", batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.batch_first:
            return self.head(self.encoder(x).mean(1))
        return self.head(self.encoder(x.transpose(0, 1)).mean(0))


class Uint8Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mix, self.act = nn.Conv2d(8, 16, 1), nn.PReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x.to(self.mix.weight.dtype) / 255)))
        return self.head(self.pool(self.act(self.mix(x))).flatten(1))


class Shared(nn.Module):
    """One layer called twice: two sites, one adapter; and a head without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(12, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))))


class Folded(nn.Module):
    """Frames folded into the batch: a convolution and a Linear on [N * T, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.frame = nn.Conv2d(2, 6, 1), nn.Linear(6, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        frames = F.relu(self.mix(x.view(n * t, *x.shape[2:]))).mean((2, 3))
        return self.head(F.relu(self.frame(frames)).view(n, t, -1).mean(1))


class Framed(nn.Module):
    """Overlapping frames of a signal by ``unfold``, whose last sample none of them holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5 * 3, 8), nn.Linear(5 * 8, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.unfold(1, 5, 1).flatten(2)))
        return self.head(F.relu(self.second(x.unfold(1, 5, 2).flatten(2))).mean(1))


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(24, *shape)


def tokens() -> Tensor:
    return torch.cat([torch.randint(1, 30, (24, 4)), torch.randint(0, 30, (24, 2))], dim=1)


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (Mlp, floats(12)),
    "residual_cnn": (ResidualCnn, floats(2, 8, 8)),
    "conv1d": (Conv1dNet, floats(3, 16)),
    "vit": (lambda: VisionTransformer(HandAttention, "mean"), floats(1, 8, 8)),
    "vit_gpt": (lambda: VisionTransformer(GptAttention, "mean"), floats(1, 8, 8)),
    "vit_timm_class_token": (lambda: VisionTransformer(TimmAttention, "class"), floats(1, 8, 8)),
    "vit_mha": (lambda: VisionTransformer(TorchAttention, "mean"), floats(1, 8, 8)),
    "encoder": (lambda: Encoder(batch_first=True), tokens),
    "encoder_sequence_first": (lambda: Encoder(batch_first=False), tokens),
    "tokens": (Tokens, tokens),
    "uint8_cnn": (
        Uint8Cnn,
        lambda: torch.randint(0, 256, (24, 3, 6, 6), dtype=torch.uint8),
    ),
    "shared": (Shared, floats(12)),
    "folded": (Folded, floats(3, 2, 4, 4)),
    "framed": (Framed, floats(16, 3)),
}


@dataclass(frozen=True)
class Case:
    """A model of the zoo in eval mode with 24 examples and labels."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor


def make_case(name: str) -> Case:
    make_model, make_x = ZOO[name]
    torch.manual_seed(1)
    model, x = make_model(), make_x()
    for module in model.modules():  # a fresh batch norm would be the identity
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return Case(name, model.eval(), x, torch.randint(0, CLASSES, (len(x),)))


ADAPTER_OPTIONS = ("target_modules", "kind", "alpha", "a_dtype", "adapter_bytes")


def small_config(**options: Any) -> CompileConfig:
    """DFA, rank 4 and float32 unless asked otherwise."""
    lora = {k: options.pop(k) for k in ADAPTER_OPTIONS if k in options}
    rank = options.pop("rank", 4)
    options = {
        "rule": "dfa",
        "base_dtype": "float32",
        "adapter": LoraConfig(rank=rank, **lora),
        **options,
    }
    return CompileConfig(**options)


def stirred(built: Built, seed: int = 3) -> Built:
    """The same step away from its start, where B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {
        name: 0.1 * torch.randn(value.shape, generator=generator)
        if name.endswith("lora_B")
        else value
        for name, value in built.adapter.items()
    }
    return replace(built, adapter=adapter)


def gradients(
    built: Built, rule: str, x: Tensor, y: Tensor, w: Tensor | None = None, *, double: bool = False
) -> dict[str, Tensor]:
    """Gradients by name; in float64 if ``double``."""
    return _by_rule(RULES[rule].gradients, built, x, y, w, double=double).by_name


def credit(built: Built, rule: str, x: Tensor, y: Tensor, w: Tensor | None = None) -> Credit:
    """Every example's gradient in factors, weighted by ``w / sum w``, in float64."""
    return _by_rule(RULES[rule].credit, built, x, y, w, double=True)


def _by_rule(
    function: Callable[..., Any],
    built: Built,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    *,
    double: bool,
) -> Any:
    learner, frozen, adapter = built.step.learner, built.frozen, built.adapter
    w = torch.ones(len(x)) if w is None else w
    if double:
        learner = learner.in_float64()
        frozen = {k: v.double() if v.is_floating_point() else v for k, v in frozen.items()}
        adapter = {k: v.double() for k, v in adapter.items()}
        x, w = (v.double() if v.is_floating_point() else v for v in (x, w))
    with torch.no_grad():
        return function(
            learner, frozen, adapter, Batch(x=x, y=y, step=torch.tensor(1.0)), w / w.sum()
        )


class Engine:
    """One exported graph of a built step, in the engine that devices use."""

    def __init__(self, built: Built, role: str) -> None:
        self.captured = capture(built.step, role, built.frozen, built.adapter, built.example)
        self.model = to_onnx(self.captured)
        graphs, self.block = share_weights({role: copy.deepcopy(self.model)})  # it moves them out
        self.graph = graphs[role]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in AS_WRITTEN.items():
            options.add_session_config_entry(key, value)
        if self.block:
            options.add_external_initializers_from_files_in_memory(
                ["base.bin"], [self.block], [len(self.block)]
            )
        self.session = onnxruntime.InferenceSession(
            self.graph, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, values: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
        feed = {name: np.asarray(values[name]) for name in self.captured.inputs}
        found = self.session.run(self.captured.outputs, feed)
        return {k: torch.from_numpy(v) for k, v in zip(self.captured.outputs, found, strict=True)}


@cache
def _traced(name: str, **options: Any) -> Built:
    case = make_case(name)
    return build(case.model, case.x, small_config(**options))


def in_int8(built: Built, x: Tensor) -> Built:
    """The same build on an int8 base, as ``build`` makes it (a test compares them)."""
    learner = built.step.learner
    own = {learner.head.weight, learner.head.bias}
    added = {k: v for k, v in built.frozen.items() if "feedback" in k}
    added |= a_in_int8({k: v for k, v in built.frozen.items() if "lora_A" in k})
    ranges = conv_ranges(learner.program, x)
    base = freeze(learner.program, "int8", without=own, ranges=ranges)
    return replace(built, frozen=base | added)


@dataclass(frozen=True)
class Lab:
    """What tests share; reached through the fixture ``lab``."""

    zoo = ZOO
    case = staticmethod(make_case)
    config = staticmethod(small_config)
    stirred = staticmethod(stirred)
    gradients = staticmethod(gradients)
    credit = staticmethod(credit)
    engine = Engine

    @staticmethod
    def build(case: Case, **options: Any) -> Built:
        """A fresh build of any model."""
        return build(case.model, case.x, small_config(**options))

    @staticmethod
    def built(
        name: str, *, base_dtype: str = "float32", rule: str = "dfa", **options: Any
    ) -> Built:
        """A build of a model of the zoo; its trace and calibration are made once per worker."""
        optimizer = options.pop("optimizer", "sgd")
        if rule == "dfa_blocks":
            options.setdefault("block_size", 2)
        elif rule not in {"backprop", "dfa"}:  # these two read the same tensors
            options["rule"] = rule
        built = _traced(name, **options)
        if base_dtype == "int8":
            built = in_int8(built, make_case(name).x)
        return replace(built, step=replace(built.step, rule=rule, optimizer=optimizer))


@pytest.fixture(scope="session")
def lab() -> Lab:
    torch.set_num_threads(1)
    return Lab()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``zoo_name`` runs a test for every model of the zoo."""
    if "zoo_name" in metafunc.fixturenames:
        metafunc.parametrize("zoo_name", list(ZOO))
