"""Each exported graph is run in the devices' engine and compared with the step, then published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch

from rootlet_server.compiler.capture import example_inputs
from rootlet_server.compiler.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.capture import Captured, GraphName

BATCHES = (4, 1, 3)  # a graph that only works for the batch it was traced with must not pass
# Rounding differs by about 1e-6 a step. In int8 an activation within that of a rounding boundary
# may fall on the other side, one quantum (1/127 of its row's largest) away in one of many entries.
# A wrong graph is wrong by far more.
TOLERANCE = 1e-2
Arrays = dict[str, Any]


def _session(graph: bytes, block: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_external_initializers_from_files_in_memory(["base.bin"], [block], [len(block)])
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def disagreement(expected: Tensor, found: np.ndarray[Any, Any]) -> float:
    """``|found - expected| / |expected|`` in Frobenius norms; infinite unless all is finite."""
    reference = expected.detach().double().numpy()
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - reference) / max(float(np.linalg.norm(reference)), 1e-6))


def verify_export(
    built: Built, graphs: Mapping[GraphName, tuple[bytes, Captured]], block: bytes
) -> float:
    """Three training steps, an evaluation and a prediction; the worst disagreement of any output.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    step = built.step
    inputs = example_inputs(step, built.example, built.adapter)
    targets = inputs["y"]
    if step.learner.task == "classification":
        inputs["y"] = torch.arange(len(targets)) % step.learner.program.num_outputs
    sessions = {
        role: (_session(graph, block), captured) for role, (graph, captured) in graphs.items()
    }
    worst = 0.0
    adapter = {name: inputs[f"adapter/{name}"] for name in step.adapter}
    state = {name: inputs[f"optimizer/{name}"] for name in step.state}
    feed = {name: value.numpy() for name, value in inputs.items()}
    with torch.no_grad():
        for number, size in enumerate(BATCHES, start=1):
            count = torch.tensor(float(number))
            x, y, w = (inputs[name][:size] for name in ("x", "y", "w"))
            feed |= {"x": x.numpy(), "y": y.numpy(), "w": w.numpy(), "step": count.numpy()}
            found = _run(sessions["train"], feed)
            loss, metric, adapter, state = step.train(
                built.frozen, adapter, state, x, y, w, inputs["learning_rate"], count
            )
            expected = {"loss": loss, "metric": metric}
            expected |= {f"next/adapter/{name}": value for name, value in adapter.items()}
            expected |= {f"next/optimizer/{name}": value for name, value in state.items()}
            worst = max(worst, _compare(f"train, step {number}", expected, found))
            feed |= {
                name.removeprefix("next/"): value
                for name, value in found.items()
                if name.startswith("next/")
            }
        sums = step.evaluate(built.frozen, adapter, x, y, w)
        expected = dict(zip(("loss_sum", "metric_sum", "weight_sum"), sums, strict=True))
        worst = max(worst, _compare("evaluate", expected, _run(sessions["evaluate"], feed)))
        expected = {"output": step.predict(built.frozen, adapter, x)}
        return max(worst, _compare("predict", expected, _run(sessions["predict"], feed)))


def _run(session: tuple[onnxruntime.InferenceSession, Captured], feed: Arrays) -> Arrays:
    engine, captured = session
    values = engine.run(captured.outputs, {name: feed[name] for name in captured.inputs})
    return dict(zip(captured.outputs, values, strict=True))


def _compare(where: str, expected: Mapping[str, Tensor], found: Arrays) -> float:
    worst = 0.0
    for name, value in expected.items():
        error = disagreement(value, found[name])
        if error > TOLERANCE:
            raise ExportError(
                f"{where}: the exported graph's {name} is off by {error:.1e} of its norm; at most "
                f"{TOLERANCE} is rounding. Please report the model; nothing was written."
            )
        worst = max(worst, error)
    return worst
