"""Federation: a SuperLink, a ServerApp with FedAvg over adapters, and `serve`, which runs both.

Names are loaded when they are first used: importing this package loads no flwr, so that `rootlet
serve` can explain itself where the `[server]` extra is missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rootlet_server.federation.config import ServeConfig
    from rootlet_server.federation.console import show_events
    from rootlet_server.federation.flower_version import require_pinned_flwr
    from rootlet_server.federation.serving import ServeResult, serve
    from rootlet_server.federation.superlink import SuperLink, SuperLinkConfig

_MODULES = {
    "ServeConfig": "config",
    "ServeResult": "serving",
    "SuperLink": "superlink",
    "SuperLinkConfig": "superlink",
    "require_pinned_flwr": "flower_version",
    "serve": "serving",
    "show_events": "console",
}

__all__ = [
    "ServeConfig",
    "ServeResult",
    "SuperLink",
    "SuperLinkConfig",
    "require_pinned_flwr",
    "serve",
    "show_events",
]


def __getattr__(name: str) -> object:
    """The exported name, from the module that defines it (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """The exported names."""
    return __all__
