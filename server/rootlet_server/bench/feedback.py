"""Which feedback, in which form, how far down: cosines and accuracy on three small models.

    python -m rootlet_server.bench.feedback

Digits on an MLP, a CNN and a transformer, pre-trained upright and adapted to digits turned by 60
degrees. Cosines are with the true gradient on the turned digits, the mean and the lowest over
adapted layers, before adapting. Every arm's rate is chosen on 200 examples out of the same three.
The tables of ``docs/decisions/0009-feedback-and-blocks.md`` are its output.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rootlet_server.compiler import CompileConfig, LoraConfig, build
from rootlet_server.compiler.alignment import alignment

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlet_server.compiler import Built

SEEDS = (0, 1, 2)
RATES = (0.01, 0.03, 0.1)
EPOCHS, BATCH = 8, 16
FEEDBACK: tuple[dict[str, Any], ...] = (
    {},
    {"feedback_positions": "each"},
    {"feedback_form": "sign"},
    {"feedback_form": "low_rank", "feedback_rank": 4},
    {"calibration": "noise"},
    {"feedback": "calibrated_features"},
    {"feedback": "sign"},
    {"feedback": "random"},
    {"feedback": "broadcast"},
    {"feedback": "drtp"},
)
ATTENTION: tuple[dict[str, Any], ...] = (
    {"rule": "head_only"},
    {},
    {"block_size": 2},
    {"block_size": 4},
    {"attention": "local"},
    {"attention": "local", "block_size": 4},
    {"rule": "backprop"},
    {"rule": "backprop", "attention": "local"},
)


class Attention(nn.Module):
    """Two heads over the eight rows of a digit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to [N, T, D]."""
        n, t, d = x.shape
        q, k, v = (
            p(x).view(n, t, 2, d // 2).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / (d // 2) ** 0.5).softmax(-1)
        out: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width), nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to [N, T, D]."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """A digit's rows as eight tokens, two layers, mean pooling."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(1, 8, width))
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 64] to [N, 10]."""
        x = self.layers(self.embedding(x.view(-1, 8, 8)) + self.position)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def mlp() -> nn.Module:
    """Four layers of 96."""
    layers: list[nn.Module] = [nn.Linear(64, 96), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(96, 96), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(96, 10))


def cnn() -> nn.Module:
    """A 3x3 convolution and three 1x1 ones."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1024, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"MLP": mlp, "CNN": cnn, "transformer": Transformer}


@dataclass(frozen=True)
class Problem:
    """A base, the digits it knows, and turned ones to learn from, to choose by and to test on."""

    base: nn.Module
    upright: Tensor
    learn: tuple[Tensor, Tensor]
    choose: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def turned(images: Tensor, degrees: float) -> Tensor:
    """Digits [N, 64] turned about their middle."""
    angle = torch.deg2rad(torch.tensor(degrees))
    rows = [[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]]
    grid = nn.functional.affine_grid(
        torch.tensor(rows).expand(len(images), 2, 3), [len(images), 1, 8, 8], align_corners=False
    )
    x = images.view(-1, 1, 8, 8)
    return nn.functional.grid_sample(x, grid, align_corners=False).view(-1, 64)


def problem(make: Callable[[], nn.Module], seed: int) -> Problem:
    """Pre-train on 700 upright digits."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(1797, generator=generator)
    x = torch.from_numpy(digits.data).float()[order] / 16
    y = torch.from_numpy(digits.target).long()[order]
    torch.manual_seed(seed)
    base = make()
    optimizer = torch.optim.Adam(base.parameters(), 2e-3)
    for _ in range(30):
        for rows in torch.randperm(700, generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(base(x[rows]), y[rows]).backward()
            optimizer.step()
    z = turned(x, 60.0)
    parts = [(z[a:b], y[a:b]) for a, b in ((700, 1100), (1100, 1300), (1300, 1797))]
    return Problem(base.eval(), x[:128], *parts)


def compiled(task: Problem, options: dict[str, Any]) -> Built:
    """A float32 build of an arm."""
    config = CompileConfig(base_dtype="float32", adapter=LoraConfig(rank=16), **options)
    return build(task.base, task.upright, config)


@torch.no_grad()
def accuracy(built: Built, adapter: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> float:
    """Percent."""
    _, right, total = built.step.evaluate(built.frozen, adapter, *data, torch.ones(len(data[0])))
    return 100 * float(right / total)


@torch.no_grad()
def adapted(task: Problem, built: Built, rate: float, seed: int) -> dict[str, Tensor]:
    """The adapter after training, with the rate falling to zero."""
    generator = torch.Generator().manual_seed(seed)
    x, y = task.learn
    adapter, number = dict(built.adapter), 0
    total = EPOCHS * -(-len(x) // BATCH)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            now = torch.tensor(rate * (1 - number / total))
            number += 1
            _, _, adapter, _ = built.step.train(
                built.frozen, adapter, {}, x[rows], y[rows], torch.ones(len(rows)), now,
                torch.tensor(float(number)),
            )  # fmt: skip
    return adapter


def cosines(task: Problem, built: Built, only: tuple[str, ...] = ("",)) -> list[float]:
    """With the true gradient, of adapted layers whose path ends in one of ``only``."""
    report = alignment(built, task.learn[0][:128], task.learn[1][:128])
    return [
        layer.cosine
        for layer in report.layers[: len(report.layers) - 1]
        if layer.cosine is not None and layer.module.endswith(only)
    ]


def named(options: dict[str, Any]) -> str:
    """An arm's name in a table."""
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "default"


def feedback_table(name: str) -> None:
    """Mean and lowest cosine of every feedback, over seeds."""
    tasks = [problem(MODELS[name], seed) for seed in SEEDS]
    for options in FEEDBACK:
        found = [cosines(task, compiled(task, options)) for task in tasks]
        mean = statistics.mean(statistics.mean(each) for each in found)
        low = statistics.mean(min(each) for each in found)
        print(f"| {name} | {named(options)} | {mean:.2f} | {low:.2f} |", flush=True)


def attention_table() -> None:
    """Accuracy of the transformer, and the cosines of its queries and keys."""
    tasks = [problem(Transformer, seed) for seed in SEEDS]
    for options in ATTENTION:
        scores, queries, keys = [], [], []
        for seed, task in zip(SEEDS, tasks, strict=True):
            built = compiled(task, options)
            tries = [adapted(task, built, rate, seed) for rate in RATES]
            best = max(tries, key=lambda adapter: accuracy(built, adapter, task.choose))
            scores.append(accuracy(built, best, task.test))
            queries += cosines(task, built, ("query",))
            keys += cosines(task, built, ("key",))
        spread = f"{statistics.mean(scores):.1f} +-{statistics.stdev(scores):.1f}"
        of = [f"{statistics.mean(each):.2f}" if each else "-" for each in (queries, keys)]
        print(f"| {named(options)} | {spread} | {of[0]} | {of[1]} |", flush=True)


def main(which: list[str]) -> None:
    """Print the tables; ``attention`` or names of models choose some."""
    torch.set_num_threads(1)
    for name in MODELS:
        if not which or name in which:
            feedback_table(name)
    if not which or "attention" in which:
        attention_table()


if __name__ == "__main__":
    main(sys.argv[1:])
