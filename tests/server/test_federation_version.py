"""flwr is pinned exactly, in the distribution and at run time."""

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from rootlet_runtime.errors import MissingExtraError
from rootlet_server.errors import FlowerVersionError
from rootlet_server.federation import flower_version

ROOT = Path(__file__).parents[2]


def test_the_pin_is_the_one_of_the_distribution():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = f"flwr=={flower_version.PINNED_FLWR_VERSION}"
    assert pinned in extras["optional-dependencies"]["server"]


def test_the_installed_flwr_is_the_pinned_one():
    flower_version.require_pinned_flwr()
    assert flower_version.PINNED_FLWR_VERSION == "1.41.0"


def test_another_version_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(flower_version, "version", lambda name: "1.42.0")
    with pytest.raises(FlowerVersionError, match=r"1\.42\.0 .*pip install flwr==1\.41\.0"):
        flower_version.require_pinned_flwr()


def test_no_flwr_at_all_gives_the_pip_line(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(flower_version, "version", absent)
    with pytest.raises(MissingExtraError, match=r'pip install "rootlet\[server\]"'):
        flower_version.require_pinned_flwr()
