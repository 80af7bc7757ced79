"""What cannot be compiled is refused by its place in the model, the reason and the remedy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rootlet_server.compiler import (
    CalibrationError,
    CompileConfig,
    CompileError,
    LoraConfig,
    TrainingConfig,
    UnsupportedModelError,
    compile_bundle,
)
from rootlet_server.compiler.choice_config import BlockBudget, MixedConfig


class Wrapped(nn.Module):
    """``inner``, then a function of it, then a head unless the function has its own."""

    def __init__(self, inner, then=None, head=None):
        super().__init__()
        self.inner, self.then, self.head = inner, then, head

    def forward(self, x):
        x = self.inner(x)
        x = x if self.then is None else self.then(x)
        return x if self.head is None else self.head(x)


class TwoOutputs(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class BakedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(x.view(4, 6))


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(x if x.sum() > 0 else -x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 6)
        self.head.weight = self.body.weight

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


class BiasedKeys(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = x.unsqueeze(1)
        return self.head(self.attention(x, x, x)[0].mean(1))


def up(x):
    return x.unsqueeze(-1)


MODELS = {
    "lstm": (
        lambda: Wrapped(nn.LSTM(6, 6, batch_first=True), lambda out: out[0], nn.Linear(6, 5)),
        r"^inner: LSTM is recurrent\. Use convolutions",
    ),
    "gru_cell": (lambda: Wrapped(nn.GRUCell(6, 6), None, nn.Linear(6, 5)), "^inner: GRUCell"),
    "transposed_convolution": (
        lambda: Wrapped(
            nn.Linear(6, 6),
            lambda x: x,
            nn.Sequential(
                nn.Unflatten(1, (6, 1)), nn.ConvTranspose1d(6, 6, 1), nn.Flatten(), nn.Linear(6, 5)
            ),
        ),
        r"^head\.1: transposed convolutions are not supported\. Use",
    ),
    "softmax": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Softmax(1)), "^1: .*softmax.*no softmax"),
    "sigmoid": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Sigmoid()), "^1: .*sigmoid.*Linear head"),
    "two_outputs": (lambda: TwoOutputs(6, 5), "returns 2 tensors.*Wrap it"),
    "no_pooling": (
        lambda: Wrapped(nn.Linear(6, 6), lambda x: x.unsqueeze(1), nn.Linear(6, 5)),
        r"not \[batch, K\]\. Pool over positions",
    ),
    "unknown_operator": (
        lambda: Wrapped(nn.Linear(6, 6), torch.special.bessel_j0, nn.Linear(6, 5)),
        "bessel_j0.*docs/compiler.md",
    ),
    "tied_head": (Tied, "shares its weight.*tensors of its own"),
    "bias_k": (lambda: BiasedKeys(add_bias_kv=True), "^attention: .*bias_k.*without"),
    "zero_attention": (lambda: BiasedKeys(add_zero_attn=True), "^attention: .*add_zero_attn"),
}


def refuse(tmp_path, model, error, match, x=None, **config):
    out = tmp_path / "refused.rootlet"
    with pytest.raises(error, match=match) as caught:
        compile_bundle(
            model,
            calibration_x=torch.randn(8, 6) if x is None else x,
            config=CompileConfig(**config),
            name="refused",
            version=1,
            signing_key=None,
            out=out,
        )
    assert list(tmp_path.iterdir()) == []
    return caught.value


@pytest.mark.parametrize("name", MODELS)
def test_models(tmp_path, name):
    make, match = MODELS[name]
    error = refuse(tmp_path, make(), UnsupportedModelError, match)
    assert error.reason
    assert error.remedy


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (BakedBatch(), "bakes the batch size in.*x.shape"),
        (ByValue(), "Control flow that depends on values must leave the forward pass"),
        (lambda x: x, "model is a function; pass a torch.nn.Module"),
    ],
)
def test_what_torch_cannot_trace(tmp_path, model, match):
    refuse(tmp_path, model, CompileError, match)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("2", "^2: a grouped or depthwise convolution.*Leave it out of target_modules"),
        ("nowhere", "^nowhere: no Linear or convolution of that name.*module-path suffixes"),
        ("6", "^6: no Linear or convolution"),
    ],
)
def test_targets(tmp_path, target, match):
    lora = LoraConfig(target_modules=(target,))
    x = torch.randn(8, 2, 6, 6)
    refuse(tmp_path, convolutions(), UnsupportedModelError, match, x=x, adapter=lora)


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.body(torch.log(x)))


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.full((8, 6), torch.nan), "NaN or infinity; remove"),
        (torch.randn(8, 6).half(), "dtype float16; use float32 features, int64 token ids or uint8"),
        (torch.zeros(8, 6, dtype=torch.int32), "dtype int32"),
        (torch.randn(3, 6), "at least 4 examples"),
        (torch.randn(8), r"\[examples, ...\]"),
        (np.array([["a"] * 6] * 8), "not an array of numbers"),
    ],
    ids=["nan", "half", "int32", "few", "flat", "text"],
)
def test_calibration_data(tmp_path, x, match):
    refuse(tmp_path, nn.Linear(6, 5), CalibrationError, match, x=x)


def test_outputs_that_are_not_finite(tmp_path):
    refuse(tmp_path, Logarithm(), CalibrationError, "outputs on calibration_x hold NaN")


def test_token_ids_beyond_the_embedding(tmp_path):
    model = Wrapped(nn.Embedding(10, 6), lambda x: x.mean(1), nn.Linear(6, 5))
    x = torch.randint(0, 10, (8, 3))
    x[7, 0] = 10
    refuse(tmp_path, model, CalibrationError, "fails on calibration_x.*own data", x=x)


def test_rows_that_cannot_be_told_apart(lab):
    case = lab.case("folded")
    with pytest.raises(CalibrationError, match=r"look the same at .*two different ones first"):
        lab.build(replace(case, x=case.x[:1].repeat(8, 1, 1, 1, 1)))


def test_one_logit(tmp_path):
    refuse(tmp_path, nn.Linear(6, 1), CompileError, "needs at least 2, one logit")


def test_labels(tmp_path):
    refuse(tmp_path, nn.Linear(6, 5), CompileError, "2 names for 5 outputs", labels=("a", "b"))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LoraConfig(rank=0), "rank=0 must be a whole number of at least 1, or"),
        (lambda: LoraConfig(rank=2.5), "rank=2.5"),
        (lambda: LoraConfig(alpha=0.0), "alpha=0.0 must be a positive number. Leave it out"),
        (lambda: LoraConfig(alpha=float("nan")), "alpha=nan"),
        (lambda: LoraConfig(kind="svd"), "kind='svd' is not one of 'calibrated', 'lora'"),
        (lambda: LoraConfig(target_modules="head"), "must be a tuple of strings"),
        (lambda: CompileConfig(task="ranking"), "task='ranking' is not one of 'classification'"),
        (lambda: CompileConfig(rule="hebb"), "rule='hebb' is not one of 'auto', 'dfa', 'backprop'"),
        (lambda: CompileConfig(feedback="symmetric"), "feedback='symmetric' is not one of"),
        (lambda: CompileConfig(base_dtype="int2"), "base_dtype='int2' is not one of"),
        (lambda: CompileConfig(feedback_positions="all"), "feedback_positions='all' is not one"),
        (lambda: CompileConfig(attention="exact"), "attention='exact' is not one of 'skip'"),
        (lambda: CompileConfig(backward="int4"), "backward='int4' is not one of 'int8'"),
        (lambda: CompileConfig(block_size=0), "block_size=0 must be a whole number of at least 1"),
        (lambda: CompileConfig(block_size="half"), "block_size='half' must be"),
        (lambda: CompileConfig(block_size=True), "block_size=True must be"),
        (lambda: CompileConfig(block_budget=0.5), r"block_budget=0.5 must be a BlockBudget\(time"),
        (lambda: BlockBudget(time=0), "block_budget.time=0 must be a positive"),
        (lambda: BlockBudget(memory=float("inf")), "block_budget.memory=inf must be a positive"),
        (lambda: MixedConfig(tolerance=0), "mixed.tolerance=0 must be a positive number. 1e-3"),
        (lambda: MixedConfig(budget_bytes=0), "mixed.budget_bytes=0 must be.*None sets no bound"),
        (lambda: CompileConfig(optimizer="lion"), "optimizer='lion'"),
        (lambda: CompileConfig(max_batch=1), "max_batch=1 must be a whole number from 2 to 4096"),
        (lambda: CompileConfig(max_batch=8), "batch_size=16 is larger than max_batch=8. Raise"),
        (lambda: CompileConfig(expires_in_days=-1), "expires_in_days=-1.*None never expires"),
        (lambda: TrainingConfig(epochs=0), "epochs=0 must be a whole number of at least 1"),
        (lambda: TrainingConfig(learning_rate=-1.0), "learning_rate=-1.0 must be a positive"),
    ],
)
def test_configuration(make, match):
    with pytest.raises(CompileError, match=match):
        make()


UNREAD = {
    "feedback": ({"rule": "backprop", "feedback": "random"}, "broadcasts no error.*rule='dfa'"),
    "feedback_form": ({"feedback": "random", "feedback_form": "sign"}, "use feedback='calibrated'"),
    "feedback_rank": ({"feedback_rank": 4}, "use feedback_form='low_rank'"),
    "feedback_positions": (
        {"feedback": "sign", "feedback_positions": "each"},
        "shared by all positions.*use feedback='calibrated'",
    ),
    "block_size": ({"rule": "backprop", "block_size": 2}, "has no blocks.*use rule='dfa'"),
    "block_budget": (
        {"block_size": 2, "block_budget": BlockBudget(time=0.5)},
        "block_size=2 asks for no choice.*use block_size='auto'",
    ),
    "attention": ({"rule": "head_only", "attention": "local"}, "adapts nothing in the base"),
    "mixed": ({"mixed": MixedConfig(tolerance=0.1)}, "use base_dtype='mixed'"),
    "backward": ({"backward": "int8"}, "passes no error down.*use rule='backprop' or blocks"),
    "calibration": (
        {"rule": "head_only", "base_dtype": "float32", "calibration": "noise"},
        "nothing of rule='head_only' with these adapters is calibrated",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_an_option_that_nothing_reads_is_refused_and_not_ignored(name):
    options, match = UNREAD[name]
    with pytest.raises(CompileError, match=rf"^{name}=.* is not read: .*{match}"):
        CompileConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "backprop", "backward": "int8"},
        {"block_size": 2, "backward": "int8", "base_dtype": "mixed"},
        {"attention": "local", "backward": "int8"},
        {"rule": "backprop", "attention": "local"},
        {"block_size": "auto", "block_budget": BlockBudget(memory=0.5), "feedback": "random"},
        {"feedback_form": "low_rank", "feedback_rank": 2, "feedback_positions": "each"},
        {"rule": "head_only", "calibration": "noise"},
        {"feedback": "sign", "calibration": "noise", "base_dtype": "float32"},
    ],
)
def test_the_same_options_are_taken_where_something_reads_them(options):
    config = CompileConfig(**options)
    assert all(getattr(config, name) == value for name, value in options.items())


def test_backward_in_int8_needs_an_int8_base():
    with pytest.raises(CompileError, match="backward='int8' is not read: a base in float32"):
        CompileConfig(rule="backprop", base_dtype="float32", backward="int8")


def test_one_block_leaves_no_feedback():
    with pytest.raises(CompileError, match="feedback='random' is not read: block_size='all'"):
        CompileConfig(block_size="all", feedback="random")


def test_attention_of_an_encoder_layer_is_named_by_its_path(tmp_path):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([BiasedKeys(add_bias_kv=True)])

        def forward(self, x):
            return F.relu(self.blocks[0](x))

    refuse(tmp_path, Deep(), UnsupportedModelError, r"^blocks\.0\.attention: ")
