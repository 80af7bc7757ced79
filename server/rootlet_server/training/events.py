"""What a run tells while it goes on, and the file and the TensorBoard log that keep it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rootlet_runtime.durable import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """The latest steps.

    Attributes:
        step, steps: taken, and in all.
        epoch: from 1.
        loss: mean of the batches since the last event.
        learning_rate: of the latest step.
        grad_norm: of the latest gradient, where it is bounded; None otherwise.
        examples_per_s: since the last event.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    examples_per_s: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Loss and metric (accuracy, or squared error) on the held-out examples after a step."""

    step: int
    loss: float
    metric: float


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint is whole."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """The run goes on after this step of an earlier call."""

    step: int


TrainingEvent = Stepped | Evaluated | Saved | Resumed
OnTraining = Callable[[TrainingEvent], None]


class EventFile:
    """Events as lines of JSON, read by the diagnostics; a resumed run drops what it repeats."""

    def __init__(self, folder: Path, *, after: int) -> None:
        self._path = folder / EVENTS_FILE
        kept = [line for line in read_events(folder) if line["step"] <= after]
        content = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self._path, content.encode(), mode=0o644)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, event: TrainingEvent) -> None:
        """Append an event."""
        line = {"event": type(event).__name__, **asdict(event)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run so far; a last line that a crash cut off is left out."""
    path = folder / EVENTS_FILE
    if not path.is_file():
        return []
    return list(_parsed(path.read_text(encoding="utf-8").splitlines()))


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            yield value


class TensorBoardLog:
    """The scalars for ``tensorboard --logdir``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, event: TrainingEvent) -> None:
        """Log an event's numbers."""
        if isinstance(event, Stepped):
            for name in ("loss", "learning_rate", "grad_norm", "examples_per_s"):
                if (value := getattr(event, name)) is not None:
                    self._writer.add_scalar(f"train/{name}", value, event.step)
        elif isinstance(event, Evaluated):
            self._writer.add_scalar("held_out/loss", event.loss, event.step)
            self._writer.add_scalar("held_out/metric", event.metric, event.step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
