"""What a device refuses: another bundle, more than its bounds, more energy than it may spend."""

from collections.abc import Mapping

from rootlet.continual import Continual
from rootlet.errors import RequestRefusedError
from rootlet.protocol import EvaluateRequest, TrainRequest
from rootlet.round_work import needed_work
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.manifest import Manifest


def check_bundle(bundle: Bundle, asked: EvaluateRequest) -> None:
    """Refuse a request for another bundle.

    Raises:
        RequestRefusedError: Names both.
    """
    if asked.manifest_sha256 != bundle.manifest_sha256:
        raise RequestRefusedError(
            f"the request is for bundle {asked.bundle} {asked.bundle_version} "
            f"({asked.manifest_sha256[:12]}…); this device runs {bundle.manifest.name} "
            f"{bundle.manifest.version} ({bundle.manifest_sha256[:12]}…): install the same "
            "bundle on both sides"
        )


def check_bounds(asked: TrainRequest, bounds: Mapping[str, float]) -> None:
    """Refuse a training beyond the device's bounds, by the names of the request's fields.

    Raises:
        RequestRefusedError: The value and the bound.
    """
    for name, bound in bounds.items():
        value = getattr(asked, name)
        if value > bound:
            raise RequestRefusedError(
                f"{name} is {value}; this device accepts at most {bound}: ask for less, or "
                "raise the device's limit"
            )


def check_energy(
    manifest: Manifest,
    asked: TrainRequest,
    continual: Continual | None,
    *,
    limit_j: float | None,
    examples: int,
    held_out: int,
) -> None:
    """Refuse a round that is known to need more energy than it may spend.

    Raises:
        RequestRefusedError: The estimate and the bound.
    """
    if limit_j is None:
        return
    work = needed_work(manifest, asked, continual, examples=examples, held_out=held_out)
    if work.estimated_j > limit_j:
        raise RequestRefusedError(
            f"the round needs {work.estimated_j:.3g} J (estimated) and this device spends at "
            f"most {limit_j:.3g} J on one: ask for fewer epochs"
        )
