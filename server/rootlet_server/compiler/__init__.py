"""The compiler: a torch model becomes a signed bundle of plain inference graphs."""

from rootlet_server.compiler.alignment import AlignmentReport, alignment
from rootlet_server.compiler.build import Built, build
from rootlet_server.compiler.choice_config import BlockBudget, MixedConfig
from rootlet_server.compiler.compile import CompiledBundle, compile_bundle
from rootlet_server.compiler.config import CompileConfig, LoraConfig, PrivacyConfig, TrainingConfig
from rootlet_server.compiler.errors import (
    CalibrationError,
    CompileError,
    ExportError,
    UnsupportedModelError,
)

__all__ = [
    "AlignmentReport",
    "BlockBudget",
    "Built",
    "CalibrationError",
    "CompileConfig",
    "CompileError",
    "CompiledBundle",
    "ExportError",
    "LoraConfig",
    "MixedConfig",
    "PrivacyConfig",
    "TrainingConfig",
    "UnsupportedModelError",
    "alignment",
    "build",
    "compile_bundle",
]
