"""The server's side: compile a torch model into a bundle, and federate it over a Flower SuperLink.

Names are loaded when they are first used, so that importing the package loads neither torch nor
flwr.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rootlet_server.compiler import (
        BlockBudget,
        CompileConfig,
        LoraConfig,
        MixedConfig,
        PrivacyConfig,
        TrainingConfig,
        compile_bundle,
    )
    from rootlet_server.federation import ServeConfig, ServeResult, serve
    from rootlet_server.simulation import SimulationResult, simulate

_MODULES = {
    "BlockBudget": "rootlet_server.compiler",
    "CompileConfig": "rootlet_server.compiler",
    "LoraConfig": "rootlet_server.compiler",
    "MixedConfig": "rootlet_server.compiler",
    "PrivacyConfig": "rootlet_server.compiler",
    "ServeConfig": "rootlet_server.federation",
    "ServeResult": "rootlet_server.federation",
    "SimulationResult": "rootlet_server.simulation",
    "TrainingConfig": "rootlet_server.compiler",
    "compile_bundle": "rootlet_server.compiler",
    "serve": "rootlet_server.federation",
    "simulate": "rootlet_server.simulation",
}

__all__ = [
    "BlockBudget",
    "CompileConfig",
    "LoraConfig",
    "MixedConfig",
    "PrivacyConfig",
    "ServeConfig",
    "ServeResult",
    "SimulationResult",
    "TrainingConfig",
    "compile_bundle",
    "serve",
    "simulate",
]


def __getattr__(name: str) -> object:
    """The exported name, from the module that defines it (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The exported names."""
    return __all__
