"""The demo's APK: what it is, and what fails its build. Run by `.ci/android`, which built it."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rootlet_runtime.operators import ALLOWED_OPERATORS

DEMO = Path(__file__).parents[2] / "android_demo"
sys.path.insert(0, str(DEMO / "build"))
import apk  # noqa: E402
import fetch  # noqa: E402

OUT = fetch.cache_folder() / "out"


@pytest.fixture
def built() -> Path:
    path = OUT / "apk/rootlet-demo.apk"
    assert path.is_file(), "build it: python3 android_demo/build/build.py apk"
    return path


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of the app to spoil."""
    subprocess.run(["cp", "-r", DEMO / "app/src/main", tmp_path / "app"], check=True)
    return tmp_path / "app"


def compiled(folder: Path, **sources: str) -> dict[str, bytes]:
    """Java classes of the package ``org.rootlet.spoiled``, by path."""
    for name, body in sources.items():
        (folder / f"{name}.java").write_text(
            f"package org.rootlet.spoiled; class {name} {{{body}}}"
        )
    files = [folder / f"{name}.java" for name in sources]
    subprocess.run(["javac", "--release", "11", "-d", folder, *files], check=True)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.class")
    }


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def manifest_of(built: Path) -> str:
    command = ["aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", built]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_is_what_the_store_would_see(built):
    report = apk.verify(built)
    assert "arm64-v8a, x86_64" in report
    assert "v2" in report
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
        assert {"assets/digits.rootlet", "assets/publisher.hex", "classes.dex"} <= names
        stored = [info for info in archive.infolist() if info.filename.endswith(".so")]
    assert len(stored) == 4
    assert all(info.compress_type == zipfile.ZIP_STORED for info in stored)


def test_a_tampered_apk_is_refused(built, tmp_path):
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    spoiled = tmp_path / "spoiled.apk"
    spoiled.write_bytes(content)
    with pytest.raises(fetch.BuildError, match="apksigner verify failed"):
        apk.verify(spoiled)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("AndroidManifest.xml", 'Traffic="false"', 'Traffic="true"', "usesCleartextTraffic"),
        ("res/xml/network_security.xml", '"false"', '"true"', "permits cleartext"),
        ("res/xml/network_security.xml", 'src="system"', 'src="user"', "trusts authorities that"),
        (
            "AndroidManifest.xml",
            "</application>",
            '<provider android:name="ai.onnxruntime.TelemetryInitializer" /></application>',
            "declares a provider",
        ),
    ],
)
def test_a_manifest_that_lets_data_out_is_refused(app, tmp_path, file, old, new, words):
    replace(app / file, old, new)
    demo = OUT / "reference/demo"
    with pytest.raises(fetch.BuildError, match=words):
        apk.build_apk(tmp_path, demo / "digits.rootlet", demo / "publisher.hex", app)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (r"(usesCleartextTraffic\S+)=false", r"\1=true", "usesCleartextTraffic=false"),
        (r"(allowBackup\S+)=false", r"\1=true", "allowBackup=false"),
        (r":networkSecurityConfig", ":other", "no networkSecurityConfig"),
        (r"E: service", "E: provider", "declares a provider"),
        (r"permission\.INTERNET", "permission.READ_CONTACTS", "asks for .*READ_CONTACTS"),
    ],
)
def test_the_manifest_in_the_apk_is_read_too(built, old, new, words):
    tree = manifest_of(built)
    apk.check_manifest(tree)
    spoiled, count = re.subn(old, new, tree)
    assert count
    with pytest.raises(fetch.BuildError, match=words):
        apk.check_manifest(spoiled)


def test_a_call_that_android_8_does_not_have_is_refused(tmp_path):
    body = (
        "static byte[] all(java.io.InputStream in) throws Exception { return in.readAllBytes(); }"
    )
    with pytest.raises(fetch.BuildError, match=r"java/io/InputStream\.readAllBytes"):
        apk.check_apis(compiled(tmp_path, Spoiled=body).values())


def test_a_buffer_that_only_later_androids_return_is_refused(tmp_path):
    """`ByteBuffer.position(int)` returns a ByteBuffer from Java 9 on, and a Buffer on Android 8."""
    body = "static Object at(java.nio.ByteBuffer b) { return b.position(1); }"
    with pytest.raises(fetch.BuildError, match=r"ByteBuffer\.position\(I\)Ljava/nio/ByteBuffer;"):
        apk.check_apis(compiled(tmp_path, Spoiled=body).values())


def test_a_class_that_is_nowhere_is_named(tmp_path):
    classes = compiled(tmp_path, Uses="Object it = new Gone();", Gone="")
    del classes["org/rootlet/spoiled/Gone.class"]
    with pytest.raises(fetch.BuildError, match=r"Uses uses org/rootlet/spoiled/Gone"):
        apk.reached(classes, OUT)


def test_a_download_that_is_another_file_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "tool.tgz"
    other.write_bytes(b"another tool")
    with pytest.raises(fetch.BuildError, match="is pinned; nothing of it was used"):
        fetch.check_sha256(other, fetch.KOTLIN.sha256, fetch.KOTLIN.package)
    monkeypatch.setitem(fetch.DEBIAN_JARS, "junit4.jar", ("junit4", "0" * 64))
    with pytest.raises(fetch.BuildError, match="0000 is pinned"):
        fetch.debian_jar("junit4.jar")


def test_the_library_knows_nothing_of_android():
    sources = list((DEMO / "core/src/main").rglob("*.kt"))
    assert len(sources) > 15
    assert [path.name for path in sources if re.search(r"\bandroidx?\.", path.read_text())] == []


def test_the_library_allows_the_operators_that_the_python_runtime_allows():
    source = DEMO / "core/src/main/kotlin/org/rootlet/bundle/Operators.kt"
    (names,) = re.findall(r'"""(.*?)"""', source.read_text(), re.DOTALL)
    assert set(names.split()) == ALLOWED_OPERATORS
