"""Builds the demo's APK: compile, check, dex, link, pack, align, sign, verify.

Only what is asked for is packed: of Bouncy Castle and Kotlin's library, the classes that ours
reach; of ONNX Runtime, all but its telemetry.
"""

import re
import secrets
import shutil
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from classfiles import references
from fetch import KOTLIN, ONNXRUNTIME, R8, BuildError, debian_jar, fetched
from jvm import DEMO, compile_kotlin, compile_library, library_classpath, onnxruntime_jar, run

APP = DEMO / "app/src/main"
HERE = Path(__file__).parent
ABIS = ("arm64-v8a", "x86_64")
MIN_SDK, TARGET_SDK = 26, 34
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
TELEMETRY = re.compile(r"ai/onnxruntime/(telemetry/.*|TelemetryInitializer.*)\.class")
PLATFORM = ("java/", "javax/", "android/", "dalvik/")
PAGE = 16 * 1024  # of the largest memory pages that Android has
ALIGNMENT_FIELD = 0xD935  # the extra field by which zipalign and apksigner know an alignment


def build_apk(out: Path, bundle: Path, publisher: Path, app: Path = APP) -> Path:
    """The signed APK.

    Args:
        out: For what is made.
        bundle: That the app ships.
        publisher: A file with the hexadecimal key of who signed it.
        app: Sources, resources and manifest.

    Raises:
        BuildError: A tool or a check refuses.
    """
    work = out / "apk"
    shutil.rmtree(work, ignore_errors=True)
    (work / "stubs").mkdir(parents=True)
    check_network(app)
    resources = link(app, work)
    classes = compile_app(out, work, app)
    check_apis(classes.values())
    packed = {**classes, **reached(classes, out)}
    dex(packed, work)
    unaligned, aligned = work / "unaligned.apk", work / "aligned.apk"
    pack(resources, work, {"digits.rootlet": bundle, "publisher.hex": publisher}, unaligned)
    run(["zipalign", "-f", "4", unaligned, aligned], "zipalign")
    add_libraries(aligned)
    apk = work / "rootlet-demo.apk"
    sign(aligned, apk, work)
    print(verify(apk), flush=True)
    return apk


def check_network(app: Path) -> None:
    """Refuses cleartext traffic, and a provider in the manifest (telemetry comes as one).

    Raises:
        BuildError: Names the file and what it says.
    """
    manifest = (app / "AndroidManifest.xml").read_text()
    if 'usesCleartextTraffic="false"' not in manifest:
        raise BuildError("AndroidManifest.xml: usesCleartextTraffic must be false")
    for path in [*app.glob("res/xml/*.xml")]:
        if 'cleartextTrafficPermitted="true"' in path.read_text():
            raise BuildError(f"{path.name}: permits cleartext traffic")
    if "<provider" in manifest:
        raise BuildError("AndroidManifest.xml: declares a provider; the app needs none, and "
                         "ONNX Runtime's telemetry comes as one")  # fmt: skip


def link(app: Path, work: Path) -> Path:
    """The APK with resources and manifest, and R.java beside it."""
    run(["aapt2", "compile", "--dir", app / "res", "-o", work / "res.zip"], "aapt2 compile")
    target = work / "resources.apk"
    run(
        ["aapt2", "link", "-I", FRAMEWORK, "--manifest", app / "AndroidManifest.xml",
         "--java", work / "gen", "-o", target, work / "res.zip"],
        "aapt2 link",
    )  # fmt: skip
    return target


def compile_app(out: Path, work: Path, app: Path) -> dict[str, bytes]:
    """Our own classes by path: the library's, the app's, and R."""
    run(
        ["javac", "--release", "11", "-nowarn", "-d", work / "stubs",
         *sorted((HERE / "stubs").rglob("*.java"))],
        "javac on the stubs",
    )  # fmt: skip
    generated = sorted((work / "gen").rglob("*.java"))
    run(["javac", "--release", "11", "-d", work / "r", *generated], "javac on R")
    core = compile_library(out)
    classpath = [work / "r", work / "stubs", core, *library_classpath(out)]
    compile_kotlin(sorted((app / "kotlin").rglob("*.kt")), classpath, work / "app")
    found: dict[str, bytes] = {}
    for root in (core, work / "app", work / "r"):
        for path in sorted(root.rglob("*.class")):
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def check_apis(classes: Iterable[bytes]) -> None:
    """Holds our own classes to ``apis.txt``: every platform member is there at the least API level.

    Libraries of others (Kotlin's, Bouncy Castle, ONNX Runtime) are not held to it.

    Raises:
        BuildError: Names each member that is not listed, or is newer.
    """
    levels: dict[tuple[str, str], int] = {}
    for line in (HERE / "apis.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            level, owner, *members = line.split()
            levels |= {(owner, member): int(level) for member in members}
    used = {
        member
        for content in classes
        for member in references(content).members
        if member[0].startswith(PLATFORM)
    }
    wrong = sorted(
        f"{owner}.{member}"
        + (f" (API {levels[owner, member]})" if (owner, member) in levels else "")
        for owner, member in used
        if levels.get((owner, member), 999) > MIN_SDK
    )
    if wrong:
        raise BuildError(
            f"not in Android's API {MIN_SDK}, or not listed in apis.txt: {', '.join(wrong)}"
        )


def reached(classes: Mapping[str, bytes], out: Path) -> dict[str, bytes]:
    """Classes of the libraries that ours reach, and all of ONNX Runtime but its telemetry.

    Raises:
        BuildError: A class is nowhere: neither here nor the platform's.
    """
    engine = {
        name: content
        for name, content in _jar(onnxruntime_jar(out)).items()
        if not TELEMETRY.fullmatch(name)
    }
    kotlin = _jar(fetched(KOTLIN) / "kotlin-stdlib.jar")
    library = {**kotlin, **_jar(debian_jar("bcprov-1.72.jar"))}
    packed, pending = dict(engine), [*classes.values(), *engine.values()]
    while pending:
        found = references(pending.pop())
        for name in found.classes:
            path = f"{name}.class"
            if path in packed or path in classes or name.startswith(PLATFORM):
                continue
            if path in library:
                packed[path] = library[path]
                pending.append(library[path])
            elif found.name.startswith(("org/rootlet/", "ai/onnxruntime/")):
                raise BuildError(f"{found.name} uses {name}, which is in no library")
    return packed


def dex(classes: Mapping[str, bytes], work: Path) -> None:
    """Dalvik bytecode of all classes."""
    jar = work / "classes.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        for name, content in sorted(classes.items()):
            archive.writestr(name, content)
    (work / "dex").mkdir()
    home = Path(shutil.which("javac") or "javac").resolve().parents[1]
    run(
        ["java", "-Xmx1g", "-cp", fetched(R8) / "bundletool.jar", "com.android.tools.r8.D8",
         "--release", "--min-api", str(MIN_SDK), "--lib", work / "stubs", "--lib", home,
         "--output", work / "dex", jar],
        "D8",
    )  # fmt: skip


def pack(resources: Path, work: Path, assets: Mapping[str, Path], target: Path) -> None:
    """Adds code and assets."""
    shutil.copyfile(resources, target)
    with zipfile.ZipFile(target, "a") as apk:
        for path in sorted((work / "dex").glob("*.dex")):
            apk.write(path, path.name, zipfile.ZIP_DEFLATED)
        for name, path in assets.items():
            apk.write(path, f"assets/{name}", zipfile.ZIP_DEFLATED)


def add_libraries(target: Path) -> None:
    """Adds the native libraries as they are, each from a memory page on, to be mapped in place.

    Debian's zipalign knows pages of 4 KiB only; apksigner keeps the alignment that the extra field
    names.
    """
    with (
        zipfile.ZipFile(target, "a") as apk,
        zipfile.ZipFile(fetched(ONNXRUNTIME) / "onnxruntime.aar") as aar,
    ):
        for abi in ABIS:
            for name in ("libonnxruntime.so", "libonnxruntime4j_jni.so"):
                content = aar.read(f"jni/{abi}/{name}")
                check_segments(f"{abi}/{name}", content)
                info = zipfile.ZipInfo(f"lib/{abi}/{name}")
                start = apk.start_dir + 30 + len(info.filename) + 6
                padding = -start % PAGE
                info.extra = struct.pack("<HHH", ALIGNMENT_FIELD, 2 + padding, PAGE)
                info.extra += bytes(padding)
                apk.writestr(info, content, zipfile.ZIP_STORED)


def check_segments(name: str, content: bytes) -> None:
    """Refuses a library whose segments a device with large pages could not map (ELF, p_align).

    Raises:
        BuildError: Names the library and its alignment.
    """
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    for at in range(offset, offset + size * count, size):
        (kind,) = struct.unpack_from("<I", content, at)
        (alignment,) = struct.unpack_from("<Q", content, at + 48)
        if kind == 1 and alignment % PAGE:  # PT_LOAD
            raise BuildError(f"{name}: segments aligned to {alignment}, and pages have {PAGE}")


def check_pages(apk: Path) -> None:
    """Holds every native library to begin with a page, and to be stored.

    Raises:
        BuildError: Names the one that does not.
    """
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as file:
        for info in archive.infolist():
            if not info.filename.endswith(".so"):
                continue
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            if start % PAGE or info.compress_type != zipfile.ZIP_STORED:
                raise BuildError(f"{info.filename} lies at {start}, or packed; pages have {PAGE}")


def sign(aligned: Path, apk: Path, work: Path) -> None:
    """Signs with a debug key that is made on the spot and forgotten."""
    store, password = work / "debug.p12", secrets.token_hex(16)
    run(
        ["keytool", "-genkeypair", "-keystore", store, "-storetype", "PKCS12", "-storepass",
         password, "-alias", "debug", "-keyalg", "EC", "-groupname", "secp256r1",
         "-dname", "CN=rootlet debug", "-validity", "3650"],
        "keytool",
    )  # fmt: skip
    run(
        ["apksigner", "sign", "--ks", store, "--ks-pass", f"pass:{password}",
         "--min-sdk-version", str(MIN_SDK), "--out", apk, aligned],
        "apksigner sign",
    )  # fmt: skip
    store.unlink()


def verify(apk: Path) -> str:
    """Checks signature, alignment and what is in it; the lines for the log.

    Raises:
        BuildError: Any of them is wrong.
    """
    checked = run(
        ["apksigner", "verify", "--verbose", "--min-sdk-version", str(MIN_SDK), apk],
        "apksigner verify",
    )
    schemes = re.findall(r"Verified using (v[\d.]+) scheme.*: true", checked)
    run(["zipalign", "-c", "-p", "4", apk], "zipalign -c")
    check_pages(apk)
    about = run(["aapt2", "dump", "badging", apk], "aapt2 dump badging")
    if f"sdkVersion:'{MIN_SDK}'" not in about or f"targetSdkVersion:'{TARGET_SDK}'" not in about:
        raise BuildError(f"not for API {MIN_SDK} and {TARGET_SDK}:\n{about}")
    abis = re.findall(
        r"'([^']+)'", next(x for x in about.splitlines() if x.startswith("native-code"))
    )
    if set(abis) != set(ABIS):
        raise BuildError(f"native code for {abis}; {ABIS} are due")
    tree = run(["aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", apk], "aapt2 dump")
    if "E: provider" in tree:
        raise BuildError("the manifest in the APK declares a provider")
    with zipfile.ZipFile(apk) as archive:
        code = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".dex"))
    if b"Lai/onnxruntime/telemetry/" in code:
        raise BuildError("telemetry classes of ONNX Runtime are in the APK")
    return (
        f"{apk}\n  {apk.stat().st_size / 2**20:.1f} MiB; {', '.join(abis)}; signed by "
        f"{', '.join(schemes)}; aligned to 4 bytes, libraries to pages of 16 KiB; "
        f"API {MIN_SDK} to {TARGET_SDK}"
    )


def _jar(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as jar:
        return {
            name: jar.read(name)
            for name in jar.namelist()
            if name.endswith(".class") and not name.startswith("META-INF/")
        }
