"""What runs on a device: verify a bundle, train its adapter, use it."""

from rootlet_runtime import errors
from rootlet_runtime.archive import BundleLimits
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.energy import Energy, count_work, estimated_energy
from rootlet_runtime.fit import FitProgress, FitResult
from rootlet_runtime.guard import GuardConfig
from rootlet_runtime.manifest import (
    FileEntry,
    GraphSpec,
    LitertSpec,
    Manifest,
    TensorSpec,
    TrainingDefaults,
)
from rootlet_runtime.meter import Meter
from rootlet_runtime.private_fit import PrivateTraining
from rootlet_runtime.private_report import PrivacySpent, PrivateFitResult
from rootlet_runtime.schedule import RateSchedule
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
    "Energy",
    "EvaluateResult",
    "FileEntry",
    "FitProgress",
    "FitResult",
    "GraphSpec",
    "GuardConfig",
    "LitertSpec",
    "Manifest",
    "Meter",
    "PrivacySpent",
    "PrivateFitResult",
    "PrivateTraining",
    "RateSchedule",
    "TensorSpec",
    "Trainer",
    "TrainingDefaults",
    "count_work",
    "errors",
    "estimated_energy",
    "generate_keypair",
    "key_id",
    "load_private_key",
    "load_public_key",
    "publish",
    "save_keypair",
    "write_bundle",
]
