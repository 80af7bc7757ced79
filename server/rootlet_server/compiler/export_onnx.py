"""From an exported program to ONNX files that share one block of weights."""

from __future__ import annotations

import hashlib
import logging
import warnings
from typing import TYPE_CHECKING

import onnx
import torch

from rootlet_server.compiler import conv_int8, int4, int8
from rootlet_server.compiler.errors import ExportError
from rootlet_server.compiler.fuse import fuse_updates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.compiler.capture import Captured, GraphName

OPSET = 20
BASE_FILE = "base.bin"
EXTERNAL_FROM_BYTES = 256
ALIGNMENT = 64


def to_onnx(captured: Captured) -> onnx.ModelProto:
    """Translate to standard operators of opset 20, or 21 where weights are int4.

    Everything that is not needed to run is taken out: the exporter's notes hold source lines and
    paths of the machine that compiled.

    Raises:
        ExportError: the exporter failed, or wrote an operator outside the standard domain.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                captured.program,
                (),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=captured.inputs,
                output_names=captured.outputs,
                dynamic_shapes=captured.dynamic_shapes,
                custom_translation_table=int8.onnx_translation()
                | conv_int8.onnx_translation()
                | int4.onnx_translation(),
            )
    except Exception as error:
        raise ExportError(f"The ONNX exporter failed ({type(error).__name__}): {error}") from error
    finally:
        logger.setLevel(level)
    if exported is None:
        raise ExportError("The ONNX exporter returned nothing.")
    model = exported.model_proto
    _strip(model)
    int4.write_int4(model)
    fuse_updates(model)
    _name_each_use(model)
    _check(model, captured)
    return model


def _strip(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]
    model.doc_string, model.producer_name, model.producer_version = "", "rootlet", ""
    del model.graph.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.value_info[:]
    for item in (
        *model.graph.node,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]


def _name_each_use(model: onnx.ModelProto) -> None:
    """A name of its own for every use of an int8 weight; the bytes stay shared.

    For kernels whose bytes are unsigned, ONNX Runtime 1.32 rewrites the weight of a MatMulInteger
    or a DequantizeLinear under a name made from its own, and fails where two nodes read one. It
    also gives each reader of a DequantizeLinear one of its own: here each has one from the start.
    """
    weights = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    _dequantize_each_use(model, weights)
    seen: dict[str, int] = {}
    places = {"MatMulInteger": 1, "DequantizeLinear": 0}
    for node in model.graph.node:
        place = places.get(node.op_type)
        if place is None or node.input[place] not in weights:
            continue
        name = node.input[place]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            node.input[place] = f"{name}/use{seen[name]}"
            copy = model.graph.initializer.add()
            copy.CopyFrom(weights[name])
            copy.name = node.input[place]


def _dequantize_each_use(model: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]) -> None:
    """A DequantizeLinear for every reader of a weight's, placed before it."""
    shared = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    seen: dict[str, int] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name not in shared:
                continue
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:
                twin = onnx.NodeProto()
                twin.CopyFrom(shared[name])
                node.input[place] = twin.output[0] = f"{name}/use{seen[name]}"
                twin.name = f"{twin.name}/use{seen[name]}"
                nodes.append(twin)
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)


def _check(model: onnx.ModelProto, captured: Captured) -> None:
    if model.functions or any(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
        used = sorted(
            {
                f"{n.domain}::{n.op_type}"
                for n in model.graph.node
                if n.domain not in ("", "ai.onnx")
            }
        )
        if used or model.functions:
            raise ExportError(
                "The exporter wrote operators outside the standard: "
                f"{', '.join(used) or 'functions'}."
            )
        kept = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    found = [value.name for value in model.graph.input]
    if found != captured.inputs:
        missing = sorted(set(captured.inputs) - set(found))
        raise ExportError(
            f"The exported graph does not read {', '.join(missing) or found}: "
            "nothing depends on it."
        )


def share_weights(
    models: Mapping[GraphName, onnx.ModelProto],
) -> tuple[dict[GraphName, bytes], bytes]:
    """Move tensors of 256 bytes and more into one block; equal tensors are stored once.

    Returns:
        each graph's bytes, by role; and the block, every tensor aligned to 64 bytes.
    """
    block = bytearray()
    offsets: dict[bytes, int] = {}
    for model in models.values():
        for tensor in model.graph.initializer:
            raw = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
            if len(raw) < EXTERNAL_FROM_BYTES:
                continue
            digest = hashlib.sha256(raw).digest()
            if digest not in offsets:
                block.extend(b"\0" * (-len(block) % ALIGNMENT))
                offsets[digest] = len(block)
                block.extend(raw)
            _refer(tensor, offsets[digest], len(raw))
    return {
        role: model.SerializeToString(deterministic=True) for role, model in models.items()
    }, bytes(block)


def _refer(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    for field in (
        "raw_data",
        "float_data",
        "int32_data",
        "int64_data",
        "double_data",
        "uint64_data",
        "string_data",
    ):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", BASE_FILE), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
