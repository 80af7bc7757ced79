"""What `rootlet device` writes: plain lines for people, JSON lines for programs."""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rootlet.data import ArrayData
from rootlet.status import DeviceEvent, DeviceStatus
from rootlet_runtime.manifest import Manifest

_QUIET = {"pulled", "pushed", "left"}


class DeviceLog:
    """Writes to a stream and, where a path is given, appends events to a file.

    Args:
        stream: For people.
        path: For programs; one JSON object a line, with `time` in UTC.
    """

    def __init__(self, stream: TextIO, path: Path | None) -> None:
        self._stream = stream
        self._file = None if path is None else path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def started(self, manifest: Manifest, data: ArrayData) -> None:
        """Says what the device brings."""
        train, held_out = len(data.train()[0]), len(data.holdout()[0])
        self._line(
            f"device: bundle {manifest.name} version {manifest.version}, "
            f"{train} examples to learn from, {held_out} held out"
        )

    def event(self, event: DeviceEvent) -> None:
        """Writes an event; the quiet ones to the file only."""
        self._record(asdict(event))
        if event.kind in {"trained", "evaluated"}:
            self._line(f"round {event.round} {event.kind}: {_summary(event.metrics)}")
        elif event.kind == "answered":
            if event.detail:
                self._line(f"{event.message_type} refused: {event.detail}")
        elif event.kind not in _QUIET:
            self._line(f"{event.kind}: {event.detail}" if event.detail else event.kind)

    def ended(self, status: DeviceStatus) -> None:
        """Says what it came to."""
        spent = status.energy_today
        energy = f", {spent.joules:.2g} J of training today ({spent.method})"
        self._line(
            f"left: {status.rounds} rounds trained, {_bytes(status.bytes_down)} down, "
            f"{_bytes(status.bytes_up)} up{energy if spent.joules else ''}"
        )

    def _line(self, text: str) -> None:
        with self._lock:
            print(text, file=self._stream, flush=True)

    def _record(self, values: dict[str, Any]) -> None:
        with self._lock:
            if self._file is not None:
                stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}
                self._file.write(json.dumps(stamped) + "\n")
                self._file.flush()


def _summary(metrics: Mapping[str, float]) -> str:
    parts = []
    for name in ("accuracy", "error"):
        if f"{name}_received" in metrics:
            values = [f"{metrics[key]:.4g}" for key in _measured(name, metrics)]
            parts.append(f"{name} {' -> '.join(values)}")
    parts.append(f"loss {metrics['loss']:.4g}")
    parts.append(f"{metrics['num-examples']:.0f} examples")
    if "train_s" in metrics:
        parts.append(f"{metrics['train_s']:.2f} s")
        parts.append(f"about {metrics['energy_estimated_j']:.2g} J (estimate)")
        parts.append(f"{_bytes(metrics['bytes_down'])} down, {_bytes(metrics['bytes_up'])} up")
    return ", ".join(parts)


def _measured(name: str, metrics: Mapping[str, float]) -> list[str]:
    return [key for key in (f"{name}_received", f"{name}_trained") if key in metrics]


def _bytes(count: float) -> str:
    return f"{count / 1000:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
