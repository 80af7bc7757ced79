"""From a base to a published bundle, with two looks before anybody gets it.

Before any version: the alignment of the rule with the true gradient, layer by layer, on the
calibration data (``rootlet_server.compiler.alignment``). Before a next version: the gate. The
former bundle, with the adapter that devices have, and the new one answer the same held-out
examples in the engine of the devices, and the new one is published only if it is not worse.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.durable import fsync_folder, write_atomically
from rootlet_runtime.quality_gate import example_errors, p_value
from rootlet_server.compiler import CompileConfig, alignment, compile_bundle
from rootlet_server.compiler.build import as_calibration
from rootlet_server.training.errors import AlignmentError, FullTrainingError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from torch import Tensor, nn

    from rootlet_server.compiler import AlignmentReport, CompiledBundle

ALIGNED_EXAMPLES = 128


@dataclass(frozen=True, kw_only=True)
class Release:
    """A bundle that was published, or would be.

    Attributes:
        compiled: the bundle and its step.
        alignment: of every layer; also in ``<bundle>.alignment.json``.
    """

    compiled: CompiledBundle
    alignment: AlignmentReport


@dataclass(frozen=True, kw_only=True)
class GateVerdict:
    """What the gate says.

    Attributes:
        published: whether the new version was written.
        reason: why, in words.
        before, after: mean error of the former and the new version: share of wrong answers, or
            mean squared error.
        p_value: of "it got worse", by the sign-flip test of the runtime's quality gate.
        examples: held out.
    """

    published: bool
    reason: str
    before: float
    after: float
    p_value: float
    examples: int


def release(
    model: nn.Module,
    *,
    calibration_x: Tensor | npt.ArrayLike,
    config: CompileConfig | None = None,
    name: str,
    version: int,
    signing_key: Ed25519PrivateKey,
    out: str | os.PathLike[str],
    floor: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Release:
    """Compile a base, report its alignment, and publish it.

    Args:
        model: the base.
        calibration_x: read in chunks, so that it may be large; ``config.calibration="noise"``
            takes only its shape and range.
        config: the bundle.
        name: as in ``compile_bundle``.
        version: as there.
        signing_key: as there.
        out: as there.
        floor: the least cosine that any adapted layer may have; None publishes whatever it is.
        progress: called with a few words as each stage begins.

    Raises:
        AlignmentError: a layer is below the floor; nothing was written.
        CompileError: the model cannot be compiled; nothing was written.
    """
    path, say = Path(out), progress or (lambda _: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        compiled = compile_bundle(
            model, calibration_x=calibration_x, config=config, name=name, version=version,
            signing_key=signing_key, out=Path(folder) / path.name, progress=say,
        )  # fmt: skip
        say("measuring alignment")
        report = alignment(compiled.built, as_calibration(calibration_x)[:ALIGNED_EXAMPLES])
        if floor is not None and report.lowest is not None and report.lowest < floor:
            worst = next(x for x in report.layers if x.cosine == report.lowest)
            raise AlignmentError(
                f"{worst.module}: cosine {report.lowest:.2f} with the true gradient, below the "
                f"floor {floor:g}. Calibrate on more or other data, use block_size='auto', or "
                "leave the layer out of target_modules."
            )
        write_atomically(
            alignment_path(path), json.dumps(asdict(report), indent=1).encode(), mode=0o644
        )
        (Path(folder) / path.name).replace(path)
    fsync_folder(path.parent)
    return Release(compiled=replace(compiled, path=path), alignment=report)


def alignment_path(bundle: Path) -> Path:
    """Where a bundle's alignment report lies."""
    return bundle.with_name(bundle.name + ".alignment.json")


def release_next(
    model: nn.Module,
    former: str | os.PathLike[str],
    *,
    held_out: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    calibration_x: Tensor | npt.ArrayLike,
    config: CompileConfig | None = None,
    signing_key: Ed25519PrivateKey,
    out: str | os.PathLike[str],
    adapter: Mapping[str, npt.ArrayLike] | None = None,
    largest_rise: float = 0.0,
    floor: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[GateVerdict, Release]:
    """Re-quantise, re-calibrate, and publish the next version if it is not worse.

    Args:
        model: the merged base.
        former: the bundle that devices have, signed with the same key.
        held_out: (x, y) that neither trained anything.
        calibration_x: as in ``release``.
        config: as there.
        signing_key: as there.
        floor: as there.
        progress: as there.
        out: where the next version goes; nothing is there if the gate refuses it.
        adapter: that devices use on the former bundle; None takes the bundle's own.
        largest_rise: of the mean error, at which it still counts as not worse.

    Returns:
        The verdict, and what was compiled (not at ``out`` if it was refused).
    """
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    trusted = [signing_key.public_key()]
    with Bundle.load(former, trusted_keys=trusted) as bundle:
        manifest = bundle.manifest
        before = _errors(bundle, held_out, adapter)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = release(
            model, calibration_x=calibration_x, config=config, name=manifest.name,
            version=manifest.version + 1, signing_key=signing_key,
            out=Path(folder) / path.name, floor=floor, progress=progress,
        )  # fmt: skip
        with Bundle.load(made.compiled.path, trusted_keys=trusted) as bundle:
            after = _errors(bundle, held_out, None)
        verdict = judge(before, after, largest_rise=largest_rise)
        if verdict.published:
            alignment_path(made.compiled.path).replace(alignment_path(path))
            made.compiled.path.replace(path)
            made = replace(made, compiled=replace(made.compiled, path=path))
    fsync_folder(path.parent)
    return verdict, made


def judge(
    before: npt.NDArray[Any], after: npt.NDArray[Any], *, largest_rise: float = 0.0
) -> GateVerdict:
    """Compare errors of the same held-out examples, one by one.

    Raises:
        FullTrainingError: there are none, or not as many of both.
    """
    if before.shape != after.shape or not len(before):
        raise FullTrainingError(
            f"the gate was given {len(before)} and {len(after)} errors; hold out a hundred "
            "examples or more, for both versions."
        )
    means = float(before.mean()), float(after.mean())
    worse = p_value(before, after)
    # Not "<": a mean over infinite errors compares as false, and refuses.
    passes = means[1] <= means[0] + largest_rise
    words = "not worse" if passes else f"worse by more than {largest_rise:g}"
    return GateVerdict(
        published=passes,
        reason=f"{words}: error {means[0]:.4f} before, {means[1]:.4f} after (p = {worse:.3g})",
        before=means[0],
        after=means[1],
        p_value=worse,
        examples=len(before),
    )


def _errors(
    bundle: Bundle,
    held_out: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    adapter: Mapping[str, npt.ArrayLike] | None,
) -> npt.NDArray[Any]:
    trainer = Trainer(bundle)
    if adapter is not None:
        trainer.load_adapter(adapter)
    x, y = held_out
    errors: npt.NDArray[Any] = example_errors(bundle.manifest.task, trainer.predict(x), y)
    trainer.release()
    return errors
