"""Simulation: ten thousand clients on a laptop, with the graphs that ship.

Names are loaded when they are first used: importing this package loads neither torch nor flwr.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rootlet_server.simulation.availability import Always, Diurnal, Recorded
    from rootlet_server.simulation.batching import LocalTraining
    from rootlet_server.simulation.controls import Scaffold
    from rootlet_server.simulation.fleet import Fleet
    from rootlet_server.simulation.grid import VectorGrid
    from rootlet_server.simulation.latency import Latency
    from rootlet_server.simulation.pace import Pace
    from rootlet_server.simulation.partitions import Shifted, by_label, by_user, dirichlet, iid
    from rootlet_server.simulation.population import (
        ArrayPopulation,
        LazyPopulation,
        SampledPopulation,
    )
    from rootlet_server.simulation.privacy import DevicePrivacy
    from rootlet_server.simulation.result import SimulationResult
    from rootlet_server.simulation.run import Progress, simulate
    from rootlet_server.simulation.serve_app import run_server_app
    from rootlet_server.simulation.sources import (
        PartitionerPopulation,
        from_hugging_face,
        from_torch,
    )
    from rootlet_server.simulation.uploads import SecureAggregation

_MODULES = {
    "Always": "availability",
    "ArrayPopulation": "population",
    "DevicePrivacy": "privacy",
    "Diurnal": "availability",
    "Fleet": "fleet",
    "Latency": "latency",
    "LazyPopulation": "population",
    "LocalTraining": "batching",
    "Pace": "pace",
    "PartitionerPopulation": "sources",
    "Progress": "run",
    "Recorded": "availability",
    "SampledPopulation": "population",
    "Scaffold": "controls",
    "SecureAggregation": "uploads",
    "Shifted": "partitions",
    "SimulationResult": "result",
    "VectorGrid": "grid",
    "by_label": "partitions",
    "by_user": "partitions",
    "dirichlet": "partitions",
    "from_hugging_face": "sources",
    "from_torch": "sources",
    "iid": "partitions",
    "run_server_app": "serve_app",
    "simulate": "run",
}

__all__ = [
    "Always",
    "ArrayPopulation",
    "DevicePrivacy",
    "Diurnal",
    "Fleet",
    "Latency",
    "LazyPopulation",
    "LocalTraining",
    "Pace",
    "PartitionerPopulation",
    "Progress",
    "Recorded",
    "SampledPopulation",
    "Scaffold",
    "SecureAggregation",
    "Shifted",
    "SimulationResult",
    "VectorGrid",
    "by_label",
    "by_user",
    "dirichlet",
    "from_hugging_face",
    "from_torch",
    "iid",
    "run_server_app",
    "simulate",
]


def __getattr__(name: str) -> object:
    """The exported name, from the module that defines it (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """The exported names."""
    return __all__
