"""How the demo's APK is laid out: pages of 16 KB, and what the shrinker leaves. See `test_apk`."""

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "android_demo"
sys.path.insert(0, str(DEMO / "build"))
import align  # noqa: E402
import fetch  # noqa: E402
import jvm  # noqa: E402
import shrink  # noqa: E402

OUT = fetch.cache_folder() / "out"
BUILT = OUT / "apk/rootlet-demo.apk"


def library(alignment=align.PAGE):
    """The least that is a 64-bit ELF file with one segment to load."""
    header = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q", 64) + bytes(14)
    header += struct.pack("<HH", 56, 1)
    return header.ljust(64, b"\0") + struct.pack("<I44xQ", 1, alignment)


def entries(alignment=align.PAGE):
    yield align.Entry("odd.txt", b"123", stored=True)
    yield align.Entry("dense.txt", b"123" * 1000, stored=False)
    yield align.Entry("lib/arm64-v8a/libone.so", library(alignment), stored=True)
    yield align.Entry("lib/arm64-v8a/libtwo.so", library(), stored=True)


def test_what_is_stored_is_found_on_its_page_by_others_too(tmp_path):
    apk = tmp_path / "it.apk"
    align.write_aligned(entries(), apk)
    align.check_aligned(apk)
    subprocess.run(["zipalign", "-c", "-p", "4", apk], check=True)
    with zipfile.ZipFile(apk) as archive:
        assert archive.testzip() is None
        assert archive.read("dense.txt") == b"123" * 1000
        raw = apk.read_bytes()
        assert raw.index(b"\x7fELF") % align.PAGE == 0
        assert raw.index(b"\x7fELF", raw.index(b"\x7fELF") + 1) % align.PAGE == 0


def test_pages_of_4_kb_please_debian_and_not_us(tmp_path):
    align.check_aligned(BUILT)
    apk = tmp_path / "it.apk"
    align.write_aligned(entries(), apk, page=4096)
    subprocess.run(["zipalign", "-c", "-p", "4", apk], check=True)
    with pytest.raises(fetch.BuildError, match=r"libone\.so begins at \d+, no multiple of 16384"):
        align.check_aligned(apk)


def test_a_compressed_library_is_refused(tmp_path):
    apk = tmp_path / "it.apk"
    align.write_aligned([align.Entry("lib/x86_64/it.so", library(), stored=False)], apk)
    with pytest.raises(fetch.BuildError, match=r"it\.so is compressed"):
        align.check_aligned(apk)


def test_a_library_built_for_pages_of_4_kb_is_refused(tmp_path):
    apk = tmp_path / "it.apk"
    align.write_aligned(entries(4096), apk)
    with pytest.raises(fetch.BuildError, match=r"libone\.so is built for pages of 4096 bytes"):
        align.check_aligned(apk)


def test_the_shrinker_leaves_what_is_called_by_name():
    with zipfile.ZipFile(BUILT) as archive:
        code = archive.read("classes.dex")
    kept = shrink.reached({}, OUT)
    assert len(kept) > 60
    engine = [name for name in kept if name.startswith("ai/onnxruntime/")]
    for name in (*engine, *(f"org/rootlet/demo/{n}.class" for n in ("MainActivity", "TrainJob"))):
        assert f"L{name.removesuffix('.class')};".encode() in code, name
    assert b"Lorg/bouncycastle/crypto/signers/Ed25519Signer;" in code
    assert b"Lkotlin/Deprecated;" not in code
    assert len(code) < 1_000_000  # 3.0 MB without it


def test_the_shrinker_refuses_a_class_that_is_nowhere(tmp_path):
    for name, body in (("Uses", "static Object it = new Gone();"), ("Gone", "")):
        (tmp_path / f"{name}.java").write_text(f"package spoiled; class {name} {{{body}}}")
    files = sorted(tmp_path.glob("*.java"))
    subprocess.run(
        ["javac", "--release", "8", "-Xlint:-options", "-d", tmp_path, *files], check=True
    )
    rules = tmp_path / "rules.pro"
    rules.write_text("-keep class spoiled.Uses { *; }\n")
    classes = {"spoiled/Uses.class": (tmp_path / "spoiled/Uses.class").read_bytes()}
    with pytest.raises(fetch.BuildError, match=r"Missing class spoiled\.Gone"):
        shrink.dex(classes, tmp_path, OUT / "apk/stubs", [rules], 26)


def test_the_library_is_compiled_again_only_where_a_source_changed(tmp_path, monkeypatch):
    sources = tmp_path / "core/src/main"
    sources.mkdir(parents=True)
    (sources / "One.kt").write_text("class One")
    monkeypatch.setattr(jvm, "DEMO", tmp_path)
    compiled: list[list[str]] = []

    def compiler(files, _classpath, target):
        target.mkdir(exist_ok=True)
        compiled.append([path.name for path in files])

    monkeypatch.setattr(jvm, "compile_kotlin", compiler)
    for _ in range(2):
        assert jvm.compile_library(tmp_path / "out") == tmp_path / "out/core"
    assert compiled == [["One.kt"]]
    (sources / "One.kt").write_text("class One // changed")
    jvm.compile_library(tmp_path / "out")
    (sources / "Two.kt").write_text("class Two")
    jvm.compile_library(tmp_path / "out")
    assert compiled == [["One.kt"], ["One.kt"], ["One.kt", "Two.kt"]]
