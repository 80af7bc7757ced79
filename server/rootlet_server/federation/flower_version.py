"""The one version of flwr that this release speaks.

Flower's wire changed transport within a few months, so flwr is pinned exactly in `pyproject.toml`
and checked again before a SuperLink starts: a wrong version would otherwise show itself as a
device that never answers.
"""

from importlib.metadata import PackageNotFoundError, version

from rootlet_runtime.errors import MissingExtraError
from rootlet_server.errors import FlowerVersionError

PINNED_FLWR_VERSION = "1.41.0"


def installed_flwr_version() -> str:
    """The version of flwr in this environment.

    Raises:
        MissingExtraError: flwr is not installed.
    """
    try:
        return version("flwr")
    except PackageNotFoundError:
        raise MissingExtraError(
            'federation needs flwr, which is not installed; run: pip install "rootlet[server]"'
        ) from None


def require_pinned_flwr() -> None:
    """Refuse any flwr but the pinned one.

    Raises:
        MissingExtraError: flwr is not installed.
        FlowerVersionError: another version is installed.
    """
    found = installed_flwr_version()
    if found != PINNED_FLWR_VERSION:
        raise FlowerVersionError(
            f"flwr {found} is installed, but this release of rootlet speaks the wire of flwr "
            f"{PINNED_FLWR_VERSION} only; run: pip install flwr=={PINNED_FLWR_VERSION}"
        )
