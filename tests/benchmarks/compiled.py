"""Bundles for the benchmarks, and what the peer needs to train the same adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rootlet_server.compiler import CompileConfig, LoraConfig, compile_bundle
from rootlet_server.compiler.learner import float_a

if TYPE_CHECKING:
    from pathlib import Path

    from models import Case
    from torch import Tensor

    from rootlet_server.compiler import CompiledBundle

CALIBRATION = 32


def compile_case(case: Case, folder: Path, **settings: Any) -> CompiledBundle:
    """The case's bundle by the default configuration, but for ``settings``."""
    folder.mkdir(parents=True, exist_ok=True)
    return compile_bundle(
        case.model(),
        calibration_x=case.batch(CALIBRATION, seed=2)[0],
        config=CompileConfig(**settings),
        name="benchmark",
        version=1,
        signing_key=None,
        out=folder / "-".join(["bundle", *(_word(value) for value in settings.values())]),
    )


def _word(value: Any) -> str:
    return value.kind if isinstance(value, LoraConfig) else str(value)


def peer_settings(bundle: CompiledBundle) -> tuple[dict[str, Tensor], str]:
    """The scaled A of every adapter, by module, and the path of the head."""
    learner, frozen = bundle.built.step.learner, bundle.built.frozen
    scaled_a = {
        site.module: learner.scale * float_a(frozen, site.module).t() for site in learner.sites
    }
    return scaled_a, learner.head.module
