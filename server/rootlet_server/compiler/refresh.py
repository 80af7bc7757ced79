"""Feedback calibrated again at a later adapter, and the part that brings it to devices.

The matrices of ``calibrated`` feedback are mean Jacobians at the adapter that a bundle ships. As
the adapter learns they grow stale; the server, which has the model, computes them again at the
global adapter. Only the matrices are exchanged: the weights of positions, the frozen A and the base
stay, so a part is small and every graph keeps its shape.

A part names the graphs' constants. The exporter may have kept a matrix as int8 and its scales, or
have multiplied them out; each is found by its bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from rootlet_runtime.feedback_part import GRAPHS, encode_part
from rootlet_runtime.manifest import BASE_FILE
from rootlet_server.compiler.base import freeze
from rootlet_server.compiler.errors import CalibrationError, ExportError
from rootlet_server.compiler.feedback import CALIBRATED, make_feedback
from rootlet_server.compiler.feedback_forms import form_keys
from rootlet_server.compiler.learner import float_a, frozen_a_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from torch import Tensor

    from rootlet_runtime import Bundle
    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.config import CompileConfig

    Array = npt.NDArray[Any]

SUFFIX = ":feedback.q"


def refreshed_feedback(
    built: Built, adapter: Mapping[str, Tensor], calibration_x: Tensor, config: CompileConfig
) -> dict[str, Tensor]:
    """The feedback matrices at ``adapter``, by the names of ``built.frozen``.

    Args:
        built: what the bundle was compiled from.
        adapter: the global adapter.
        calibration_x: examples of the base's data, [n, ...].
        config: that of the bundle.

    Raises:
        CalibrationError: the bundle's feedback is not calibrated, or the Jacobian is not finite.
    """
    learner = built.step.learner
    matrices = {name for name in built.frozen if name.endswith(SUFFIX)}
    if not matrices or learner.feedback not in CALIBRATED:
        raise CalibrationError(
            f"rule {built.step.rule!r} with {learner.feedback!r} feedback reads no calibrated "
            "matrices: there is nothing to refresh"
        )
    without = {name for name in (learner.head.weight, learner.head.bias) if name is not None}
    frozen = freeze(learner.program, "float32", without=without)
    if not learner.trains_a:
        frozen |= {frozen_a_key(s.module): float_a(built.frozen, s.module) for s in learner.sites}
    made = make_feedback(learner, frozen, adapter, calibration_x, config)
    points = [name.removesuffix(SUFFIX) for name in matrices]
    kept = {key for point in points for key in form_keys(point)}
    return {name: value for name, value in made.items() if name in kept}


def refresh_part(
    built: Built,
    bundle: Bundle,
    refreshed: Mapping[str, Tensor],
    *,
    version: int,
    signing_key: Ed25519PrivateKey,
) -> bytes:
    """A signed part that gives devices of ``bundle`` the refreshed matrices.

    Args:
        built: what the bundle was compiled from; its feedback is what the graphs hold.
        bundle: as devices have it, verified against its publisher's key.
        refreshed: from ``refreshed_feedback``.
        version: grows with every part of a bundle, from 1.
        signing_key: that of the bundle's publisher.

    Raises:
        ExportError: a graph holds a matrix in no form known here, or shares it between layers.
        FeedbackPartError: a device would refuse the part.
    """
    overlay: dict[str, dict[str, Array]] = {}
    for role in GRAPHS:
        if role in bundle.manifest.graphs:
            held = _constants(bundle, role)
            overlay[role] = {}
            for name in refreshed:
                if name.endswith(SUFFIX):
                    found = _exchanged(name.removesuffix(SUFFIX), built.frozen, refreshed, held)
                    if overlay[role].keys() & found.keys():
                        raise ExportError(f"{role}: two layers share one feedback constant.")
                    overlay[role] |= found
    return encode_part(bundle, overlay, version=version, signing_key=signing_key)


def _constants(bundle: Bundle, role: str) -> dict[str, Array]:
    """The values of a graph's constants; those in the base are views of it."""
    model = onnx.load_from_string(bytes(bundle.entry(bundle.manifest.graphs[role].file)))
    base, found = bundle.entry(BASE_FILE), {}
    for tensor in model.graph.initializer:
        if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8):
            continue
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            found[tensor.name] = onnx.numpy_helper.to_array(tensor)
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        start, length = int(where["offset"]), int(where["length"])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        view = np.frombuffer(base[start : start + length], dtype)
        found[tensor.name] = view.reshape(tuple(tensor.dims))
    return found


def _exchanged(
    point: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor], held: Mapping[str, Array]
) -> dict[str, Array]:
    """The constants that hold one point's matrix, with their new values."""
    q, scale, left = form_keys(point)
    product = _matches(_product(old, q, scale), _product(new, q, scale), held)
    stored = [_matches(old[key].numpy(), new[key].numpy(), held) for key in (q, scale)]
    if not product and not all(stored):
        raise ExportError(
            f"{point}: its feedback is in no constant of the graph as it was compiled; is the "
            "bundle the one that was built?"
        )
    found = product or {name: value for part in stored for name, value in part.items()}
    if left in old:
        found |= _matches(old[left].numpy(), new[left].numpy(), held)
    return found


def _product(tensors: Mapping[str, Tensor], q: str, scale: str) -> Array:
    product: Array = (tensors[q].to(tensors[scale].dtype) * tensors[scale]).numpy()
    return product


def _matches(old: Array, new: Array, held: Mapping[str, Array]) -> dict[str, Array]:
    raw = old.tobytes()
    return {
        name: new.reshape(value.shape)
        for name, value in held.items()
        if value.dtype == old.dtype and value.nbytes == len(raw) and value.tobytes() == raw
    }
