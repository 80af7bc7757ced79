"""What runs on a device: verify a bundle, train its adapter, use it."""

from rootlet_runtime import errors
from rootlet_runtime.archive import BundleLimits
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.energy import EnergyEstimate, estimate_energy_j
from rootlet_runtime.fit import FitProgress, FitResult
from rootlet_runtime.manifest import (
    FileEntry,
    GraphSpec,
    LitertSpec,
    Manifest,
    TensorSpec,
    TrainingDefaults,
)
from rootlet_runtime.signing import (
    generate_keypair,
    key_id,
    load_private_key,
    load_public_key,
    save_keypair,
)
from rootlet_runtime.trainer import EvaluateResult, Trainer
from rootlet_runtime.writer import publish, write_bundle

__all__ = [
    "Bundle",
    "BundleLimits",
    "EnergyEstimate",
    "EvaluateResult",
    "FileEntry",
    "FitProgress",
    "FitResult",
    "GraphSpec",
    "LitertSpec",
    "Manifest",
    "TensorSpec",
    "Trainer",
    "TrainingDefaults",
    "errors",
    "estimate_energy_j",
    "generate_keypair",
    "key_id",
    "load_private_key",
    "load_public_key",
    "publish",
    "save_keypair",
    "write_bundle",
]
