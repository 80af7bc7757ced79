"""Each exported graph is run in the devices' engine and compared with the step, then published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime
import torch

from rootlet_runtime.engines.onnx import AS_WRITTEN
from rootlet_server.compiler.capture import BY_EXAMPLE, example_inputs
from rootlet_server.compiler.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from rootlet_server.compiler.build import Built
from rootlet_server.compiler.capture import Captured, GraphName

BATCHES = (4, 1, 3)  # a graph that only works for the batch it was traced with must not pass
# Rounding differs by about 1e-6 a step. In int8 an activation within that of a rounding boundary
# may fall on the other side, one quantum (1/127 of its row's largest) away in one of many entries.
# A wrong graph is wrong by far more, and on all examples: a batch of one in which such an entry
# weighs more than TOLERANCE is followed by other examples.
TOLERANCE = 1e-2
ATTEMPTS = 3
# Adam's first steps have the length of the rate and the sign of the gradient, so rounding turns the
# few entries whose gradient is next to zero: of 3e-3 noise, about 2e-3 of them, 0.1 of the norm.
# Its state, compared by TOLERANCE, does not have this; a wrong formula is off by a factor.
SIGN_TOLERANCE = 0.3
CLIP_BOUNDS = (torch.tensor(1e-2), torch.tensor(1e4))  # one that clips, and one that does not
Arrays = dict[str, Any]


class Session(Protocol):
    """Runs one graph: ONNX Runtime's, or another engine's in its place."""

    def run(self, outputs: list[str], values: Arrays, /) -> list[Any]:
        """The outputs in the order asked for."""


if TYPE_CHECKING:
    Sessions = Mapping[GraphName, tuple[Session, Captured]]


def _session(graph: bytes, block: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in AS_WRITTEN.items():
        options.add_session_config_entry(key, value)
    options.add_external_initializers_from_files_in_memory(["base.bin"], [block], [len(block)])
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def disagreement(expected: Tensor, found: np.ndarray[Any, Any]) -> float:
    """``|found - expected| / |expected|`` in Frobenius norms; infinite unless all is finite.

    A single number is measured against one at least: the loss of an example that the model is sure
    of is next to nothing, and its rounding is not.
    """
    reference = expected.detach().double().numpy()
    if not np.isfinite(found).all():
        return float("inf")
    smallest = 1e-6 if reference.ndim else 1.0
    norm = max(float(np.linalg.norm(reference)), smallest)
    return float(np.linalg.norm(found - reference)) / norm


def verify_export(
    built: Built, graphs: Mapping[GraphName, tuple[bytes, Captured]], block: bytes
) -> float:
    """The graphs in ONNX Runtime against the step; see ``verify_sessions``."""
    sessions = {
        role: (_session(graph, block), captured) for role, (graph, captured) in graphs.items()
    }
    return verify_sessions(built, sessions, BATCHES)


def verify_sessions(built: Built, sessions: Sessions, sizes: Sequence[int]) -> float:
    """Three training steps, an evaluation and a prediction; the worst disagreement of any output.

    Each step of the function starts where the graph's last step ended, so that differences do not
    add up. An adapter under an optimiser with state is held to a wider bound and not counted. Where
    activations are rounded to int8, other examples are tried before a graph is called wrong.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    rounded = any(value.dtype == torch.int8 for value in built.frozen.values())
    attempts, first = ATTEMPTS if rounded else 1, 0
    while True:
        try:
            return _verify(built, sessions, sizes, built.example.roll(-first, 0))
        except ExportError:
            attempts, first = attempts - 1, first + 1
            if not attempts:
                raise


def _verify(built: Built, sessions: Sessions, sizes: Sequence[int], example: Tensor) -> float:
    step = built.step
    with torch.no_grad():
        latent = step.encode(built.frozen, example)
    inputs = example_inputs(step, latent, built.adapter)
    targets = inputs["y"]
    if step.learner.task == "classification":
        inputs["y"] = torch.arange(len(targets)) % step.learner.program.num_outputs
    worst = 0.0
    adapter = {name: inputs[f"adapter/{name}"] for name in step.adapter}
    state = {name: inputs[f"optimizer/{name}"] for name in step.state}
    feed = {name: value.numpy() for name, value in inputs.items()}
    with torch.no_grad():
        for number, size in enumerate(sizes, start=1):
            count = torch.tensor(float(number))
            rows = {name: inputs[name][:size] for name in BY_EXAMPLE}
            x, y, w = (rows[name] for name in ("x", "y", "w"))
            feed |= {name: value.numpy() for name, value in rows.items()}
            feed["step"] = count.numpy()
            teacher = (rows["teacher"], rows["teacher_weight"]) if step.distils else ()
            found = _run(sessions["train"], feed)
            loss, metric, adapter, state = step.train(
                built.frozen, adapter, state, x, y, w, inputs["learning_rate"], count, *teacher
            )
            where = f"train, step {number}"
            expected = {"loss": loss, "metric": metric}
            expected |= {f"next/optimizer/{name}": value for name, value in state.items()}
            worst = max(worst, _compare(where, expected, found, TOLERANCE))
            expected = {f"next/adapter/{name}": value for name, value in adapter.items()}
            error = _compare(where, expected, found, SIGN_TOLERANCE if state else TOLERANCE)
            worst = max(worst, 0.0 if state else error)
            adapter = {name: torch.from_numpy(found[f"next/adapter/{name}"]) for name in adapter}
            state = {name: torch.from_numpy(found[f"next/optimizer/{name}"]) for name in state}
            feed |= {
                name.removeprefix("next/"): value
                for name, value in found.items()
                if name.startswith("next/")
            }
        sums = step.evaluate(built.frozen, adapter, x, y, w)
        expected = dict(zip(("loss_sum", "metric_sum", "weight_sum"), sums, strict=True))
        found = _run(sessions["evaluate"], feed)
        worst = max(worst, _compare("evaluate", expected, found, TOLERANCE))
        feed_whole = {**feed, "x": example[: len(x)].numpy()}
        worst = max(worst, _check_whole(built, sessions, adapter, feed_whole))
        if "grads" not in sessions:
            return worst
        for bound in CLIP_BOUNDS:
            feed["max_grad_norm"] = bound.numpy()
            *totals, gradients = step.gradients(built.frozen, adapter, x, y, w, bound)
            expected = dict(zip(("loss_sum", "metric_sum", "weight_sum"), totals, strict=True))
            expected |= {f"grads/{name}": value for name, value in gradients.items()}
            found = _run(sessions["grads"], feed)
            worst = max(worst, _compare(f"grads, {bound}", expected, found, TOLERANCE))
        return worst


def _check_whole(
    built: Built,
    sessions: Sessions,
    adapter: Mapping[str, Tensor],
    feed: Arrays,
) -> float:
    """The graphs that take x itself, also where the others take its latent."""
    x = torch.from_numpy(feed["x"])
    expected = {"output": built.step.predict(built.frozen, adapter, x)}
    worst = _compare("predict", expected, _run(sessions["predict"], feed), TOLERANCE)
    if "encode" in sessions:
        expected = {"latent": built.step.encode(built.frozen, x)}
        found = _run(sessions["encode"], feed)
        worst = max(worst, _compare("encode", expected, found, TOLERANCE))
    return worst


def _run(session: tuple[Session, Captured], feed: Arrays) -> Arrays:
    engine, captured = session
    values = engine.run(captured.outputs, {name: feed[name] for name in captured.inputs})
    return dict(zip(captured.outputs, values, strict=True))


def _compare(where: str, expected: Mapping[str, Tensor], found: Arrays, bound: float) -> float:
    worst = 0.0
    for name, value in expected.items():
        error = disagreement(value, found[name])
        if error > bound:
            raise ExportError(
                f"{where}: the exported graph's {name} is off by {error:.1e} of its norm; at most "
                f"{bound} is rounding. Please report the model; nothing was written."
            )
        worst = max(worst, error)
    return worst
