"""``compile_bundle``: a torch model becomes a signed bundle."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rootlet_runtime.manifest import (
    ADAPTER_FILE,
    BASE_FILE,
    LITERT_FILE,
    GraphSpec,
    LitertSpec,
    Manifest,
    TensorSpec,
    TrainingDefaults,
    format_time,
)
from rootlet_runtime.optimizers import resolve_hyperparameters
from rootlet_runtime.writer import encode_adapter, write_bundle
from rootlet_server.compiler.alignment import AlignmentReport, alignment
from rootlet_server.compiler.block_choice import LARGEST_SAMPLE
from rootlet_server.compiler.build import DTYPES, Built, as_calibration, build
from rootlet_server.compiler.capture import Captured, GraphName, capture
from rootlet_server.compiler.choices import alignment_line, choices
from rootlet_server.compiler.config import CompileConfig
from rootlet_server.compiler.cost import count_cost
from rootlet_server.compiler.export_litert import require_converter, to_litert, verify_litert
from rootlet_server.compiler.export_onnx import share_weights, to_onnx
from rootlet_server.compiler.jacobians import sparse_noise
from rootlet_server.compiler.private_budget import private_advice
from rootlet_server.compiler.rules import RULES
from rootlet_server.compiler.verify import verify_export

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from torch import Tensor, nn

    from rootlet_server.compiler.steps import Step

ROLES: tuple[GraphName, ...] = ("train", "evaluate", "predict")


@dataclass(frozen=True, kw_only=True)
class CompiledBundle:
    """What was written, and the pure step it was made from (for simulation and tests).

    Attributes:
        path: the bundle.
        manifest: as written.
        built: the step, its frozen tensors and its initial adapter.
        worst_disagreement: largest norm-wise relative difference between the step and the exported
            graph, seen while checking them against each other.
        advice: what the scoreboard knows to be better than what was asked for.
        choices: what the compiler chose, in words: ranks, layers left out, precision, blocks.
        alignment: cosines with the true gradient by layer; None where the rule's own is exact, or
            exact on average.
    """

    path: Path
    manifest: Manifest
    built: Built
    worst_disagreement: float
    advice: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    alignment: AlignmentReport | None = None


def compile_bundle(
    model: nn.Module,
    *,
    calibration_x: Tensor | npt.ArrayLike,
    config: CompileConfig | None = None,
    name: str,
    version: int,
    signing_key: Ed25519PrivateKey | None,
    out: str | os.PathLike[str],
    progress: Callable[[str], None] | None = None,
) -> CompiledBundle:
    """Compile a model into the graphs that a device runs, and sign them.

    The model's source is not touched and its tensors are not changed. Every graph is checked
    against the pure step, in the engine that devices use, before anything is written.

    Args:
        model: any ``torch.nn.Module`` from a batch to logits [N, K], of the layers in
            ``docs/compiler.md``.
        calibration_x: examples of the data that the base was trained on, [n, ...]; 16 to a few
            hundred.
        config: the adapter, rule, precision and optimiser; None takes the defaults.
        name: the bundle's name; lower-case letters, digits, ``.``, ``_`` and ``-``.
        version: a whole number; devices never go back to a lower one.
        signing_key: the publisher's Ed25519 key; None writes an unsigned bundle, which devices
            refuse.
        out: where the bundle goes; replaced only when the new one is whole.
        progress: called with a few words as each stage begins, and with a line for everything
            that was chosen, measured or is worth a warning.

    Returns:
        The path, the manifest and the step.

    Raises:
        CompileError: the model, the data or the configuration cannot be compiled; nothing was
            written.
        MissingExtraError: ``litert_batches`` without litert-torch.
        ManifestError: the name or version is not one that a manifest can hold.
    """
    config = config or CompileConfig()
    if config.litert_batches:
        require_converter()
    say = progress or (lambda _: None)
    say("tracing and calibrating")
    built = build(model, calibration_x, config)
    config = built.config
    chosen = choices(built)
    for line in chosen:
        say(line)
    report = _aligned(built, as_calibration(calibration_x), config)
    if report is not None:
        say(alignment_line(report))
        for warning in report.warnings():
            say(f"warning: {warning}")
    captured, models = {}, {}
    roles = ROLES if config.privacy is None else (*ROLES, "grads")
    roles = roles if built.step.latent is None else (*roles, "encode")
    for role in roles:
        say(f"exporting the {role} graph")
        captured[role] = capture(built.step, role, built.frozen, built.adapter, built.example)
        models[role] = to_onnx(captured[role])
    graphs, block = share_weights(models)
    say("checking the graphs against the step")
    worst = verify_export(built, {role: (graphs[role], captured[role]) for role in roles}, block)
    manifest = _manifest(
        built, config, captured, name=name, version=version, weight_bytes=len(block)
    )
    litert = b""
    if config.litert_batches:
        say("converting to LiteRT")
        litert = to_litert(built, captured, config.litert_batches)
        worst = max(worst, verify_litert(built, captured, litert, manifest))
    say("signing and writing")
    files = {f"{role}.onnx": graph for role, graph in graphs.items()}
    files |= {
        BASE_FILE: block,
        ADAPTER_FILE: encode_adapter({k: v.numpy() for k, v in built.adapter.items()}),
    }
    if litert:
        files[LITERT_FILE] = litert
    written = write_bundle(out, manifest, files, signing_key)
    advice = private_advice(config)
    for line in advice:
        say(f"advice: {line}")
    return CompiledBundle(
        path=Path(out),
        manifest=written,
        built=built,
        worst_disagreement=worst,
        advice=advice,
        choices=chosen,
        alignment=report,
    )


def _aligned(built: Built, x: Tensor, config: CompileConfig) -> AlignmentReport | None:
    """Over the rows that blocks are chosen by; noise where nothing may be read off the data."""
    if not RULES[built.step.rule].biased or not built.step.learner.sites:
        return None
    if built.blocks is not None:
        return built.blocks.report
    if config.calibration == "noise":
        x = sparse_noise(x, config.seed)
    return alignment(built, x[:LARGEST_SAMPLE])


def _adapter_kind(step: Step, config: CompileConfig) -> str:
    return config.adapter.kind if step.learner.sites else "head"


def _latent(built: Built) -> TensorSpec | None:
    if built.step.latent is None:
        return None
    with torch.no_grad():
        shape = built.step.encode(built.frozen, built.example).shape
    return TensorSpec(name="latent", dtype="float32", shape=(None, *shape[1:]))


def _manifest(
    built: Built,
    config: CompileConfig,
    captured: Mapping[GraphName, Captured],
    *,
    name: str,
    version: int,
    weight_bytes: int,
) -> Manifest:
    now = datetime.now(UTC)
    expires = (
        None if config.expires_in_days is None else now + timedelta(days=config.expires_in_days)
    )
    step, x = built.step, built.example
    outputs = step.learner.program.num_outputs
    classifies = config.task == "classification"
    adapter = [
        TensorSpec(name=key, dtype="float32", shape=tuple(shape))
        for key, shape in step.adapter.items()
    ]
    shapes = {spec.name: spec.shape for spec in adapter}
    rank = max((site.rank for site in built.ranks), default=0)
    return Manifest(
        name=name,
        version=version,
        created_at=format_time(now),
        expires_at=None if expires is None else format_time(expires),
        task=config.task,
        rule=step.rule,
        feedback=config.feedback if config.rule == "dfa" else None,
        adapter_kind=_adapter_kind(step, config),
        rank=rank,
        alpha=step.learner.scale * max(rank, 1),
        base_dtype=config.base_dtype,
        optimizer=config.optimizer,
        hyperparameters=resolve_hyperparameters(config.optimizer, config.hyperparameters),
        max_batch=config.max_batch,
        x=TensorSpec(name="x", dtype=DTYPES[x.dtype], shape=(None, *x.shape[1:])),
        y=TensorSpec(name="y", dtype="int64", shape=(None,))
        if classifies
        else TensorSpec(name="y", dtype="float32", shape=(None, outputs)),
        latent=_latent(built),
        num_outputs=outputs,
        labels=config.labels,
        adapter=tuple(adapter),
        optimizer_state=tuple(
            TensorSpec(name=key, dtype="float32", shape=shapes[key.partition("/")[2]])
            for key in step.state
        ),
        graphs={
            role: GraphSpec(file=f"{role}.onnx", inputs=tuple(c.inputs), outputs=tuple(c.outputs))
            for role, c in captured.items()
        },
        litert=LitertSpec(file=LITERT_FILE, batches=config.litert_batches)
        if config.litert_batches
        else None,
        training=TrainingDefaults(
            learning_rate=config.training.learning_rate,
            batch_size=config.training.batch_size,
            epochs=config.training.epochs,
            decay=config.training.decay,
            warmup=config.training.warmup,
        ),
        cost=count_cost(step, built.frozen, built.adapter, x, weight_bytes),
        licence=config.licence,
        data_origin=config.data_origin,
    )
