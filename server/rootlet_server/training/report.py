"""A run and its diagnostics as a picture and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rootlet_runtime.durable import write_atomically
from rootlet_server.training.events import read_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from rootlet_server.training.diagnostics import Diagnostics

PNG, HTML = "report.png", "report.html"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;"
    "border-bottom:1px solid #ccc}td+td{text-align:right}img{max-width:100%}"
)


def write_report(folder: Path, diagnostics: Diagnostics, *, title: str) -> tuple[Path, Path]:
    """Write ``report.png`` and ``report.html`` beside a run's events; returns their paths."""
    picture = _picture(read_events(folder), diagnostics)
    write_atomically(folder / PNG, picture, mode=0o644)
    write_atomically(folder / HTML, _page(title, diagnostics, picture).encode(), mode=0o644)
    return folder / PNG, folder / HTML


def rows(diagnostics: Diagnostics) -> list[tuple[str, str]]:
    """The findings in words and numbers."""
    noise, error = diagnostics.noise_scale, diagnostics.calibration_error
    return [
        ("loss", f"{diagnostics.loss:.4f}"),
        ("accuracy, or squared error", f"{diagnostics.metric:.4f}"),
        ("expected calibration error", "-" if error is None else f"{error:.4f}"),
        ("sharpness (top Hessian eigenvalue)", f"{diagnostics.sharpness:.4g}"),
        (
            "gradient noise scale, examples",
            "lost in noise" if noise is None else f"{noise:.0f}",
        ),
    ]


def _picture(events: Sequence[dict[str, Any]], diagnostics: Diagnostics) -> bytes:
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    loss, metric, norms, reliability = figure.subplots(2, 2).flatten()
    _curve(loss, events, "Stepped", "loss", "training")
    _curve(loss, events, "Evaluated", "loss", "held out")
    loss.set(title="loss", xlabel="step")
    _curve(metric, events, "Evaluated", "metric", "held out")
    metric.set(title="accuracy, or squared error", xlabel="step")
    layers = list(diagnostics.gradient_norms)
    norms.barh(layers[::-1], [diagnostics.gradient_norms[name] for name in layers[::-1]])
    norms.set(title="gradient norm by layer", xscale="log")
    norms.tick_params(axis="y", labelsize="x-small")
    reliability.plot([0, 1], [0, 1], color="tab:gray", linewidth=1)
    reliability.plot(
        [b.confidence for b in diagnostics.bins], [b.accuracy for b in diagnostics.bins], "o-"
    )
    reliability.set(title="calibration", xlabel="confidence", ylabel="accuracy")
    for axes in (loss, metric):
        if axes.lines:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _curve(axes: Axes, events: Sequence[dict[str, Any]], kind: str, key: str, label: str) -> None:
    points = [(line["step"], line[key]) for line in events if line.get("event") == kind]
    if points:
        axes.plot(*zip(*points, strict=True), label=label)


def _page(title: str, diagnostics: Diagnostics, picture: bytes) -> str:
    def table(pairs: Sequence[tuple[str, str]]) -> str:
        body = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in pairs)
        return f"<table>{body}</table>"

    norms = [(name, f"{norm:.3g}") for name, norm in diagnostics.gradient_norms.items()]
    image = base64.b64encode(picture).decode()
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>{table(rows(diagnostics))}"
        f'<p><img alt="curves" src="data:image/png;base64,{image}"></p>'
        f"<h2>Gradient norm by layer</h2>{table(norms)}</html>"
    )
