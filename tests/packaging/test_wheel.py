"""What is in the distribution."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(ROOT)],
        check=True,
    )
    (path,) = out.glob("rootlet-*.whl")
    return zipfile.ZipFile(path)


def test_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert packages == {"rootlet", "rootlet_runtime", "rootlet_server"}
    for package in packages:
        assert f"{package}/py.typed" in wheel.namelist()


def test_a_device_installs_neither_torch_nor_flwr(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    requires = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist")
    base = {line.split(">")[0].split("=")[0] for line in requires if "extra ==" not in line}
    assert base == {"cryptography", "numpy", "onnxruntime", "protobuf", "safetensors"}
