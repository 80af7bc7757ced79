"""What a small base learns from a larger one: MNIST with few labels, five drawings.

    python tests/benchmarks/bench_distillation.py

A teacher (a convolutional net of width 48) learns from 2,000 labelled digits. A student a quarter
as wide learns from 200 of them: by its labels alone, and by labels and the teacher
(`rootlet_server.training.distill`), which also answers for the 1,800 digits whose labels the
student does not see. Same steps, same start, same batches; accuracy on 1,000 other digits.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from report import print_heading, print_table, quartiles, with_spread
from torch import Tensor, nn

from rootlet_server.bench.task_handwriting import pictures
from rootlet_server.training import (
    Arrays,
    EngineConfig,
    FullTrainingConfig,
    OptimizerConfig,
    TrainingData,
    train,
)
from rootlet_server.training.distill import distillation_loss

LABELLED, SEEN, HELD_OUT = 200, 2000, 1000
TEMPERATURE = 3.0


class Net(nn.Module):
    """Two strided 3 x 3 convolutions and a head; pictures [N, 1, 28, 28]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(2 * width * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x))
        return out


def fitted(model: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, loss=None) -> nn.Module:
    """The model, trained."""
    config = FullTrainingConfig(
        epochs=epochs, batch_size=50,
        optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=1e-2),
        engine=EngineConfig(device="cpu"),
    )  # fmt: skip
    return train(model, TrainingData(train=Arrays.of(x, y)), config, loss=loss).model


def accuracy(model: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    """Of its answers."""
    with torch.no_grad():
        return float((model.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def main() -> None:
    """Run all drawings; the last line is the difference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--drawings", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15, help="of the teacher")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_heading("Distillation into a small base", ("torch", "accelerate"))
    x, y = pictures()
    x = x[:, None]
    found: dict[str, list[float]] = {"teacher": [], "labels": [], "labels and teacher": []}
    for drawing in range(args.drawings):
        order = np.random.default_rng(drawing).permutation(len(x))[: SEEN + HELD_OUT]
        seen, held = order[:SEEN], order[SEEN:]
        few = seen[:LABELLED]
        torch.manual_seed(drawing)
        teacher = fitted(Net(48), x[seen], y[seen], args.epochs)
        start = Net(12).state_dict()
        steps = args.epochs * SEEN  # examples seen, the same for both students
        alone, taught = Net(12), Net(12)
        for student in (alone, taught):
            student.load_state_dict(start)
        alone = fitted(alone, x[few], y[few], steps // LABELLED)
        # unlabelled digits get the teacher's own answer for a label
        with torch.no_grad():
            labels = teacher(torch.from_numpy(x[seen])).argmax(1).numpy()
        labels[:LABELLED] = y[few]
        loss = distillation_loss(teacher, "classification", weight=0.7, temperature=TEMPERATURE)
        taught = fitted(taught, x[seen], labels, args.epochs, loss)
        for name, model in zip(found, (teacher, alone, taught), strict=True):
            found[name].append(100 * accuracy(model, x[held], y[held]))
    print_table(
        ("learns from", "accuracy, %"),
        ((name, with_spread(values, ".1f")) for name, values in found.items()),
    )
    gains = np.subtract(found["labels and teacher"], found["labels"])
    low, median, high = quartiles(gains.tolist())
    print(f"taught - labels alone: {median:+.1f} points [{low:+.1f}, {high:+.1f}]")


if __name__ == "__main__":
    main()
