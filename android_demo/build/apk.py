"""Builds the demo's APK: compile, check, dex, link, pack, align, sign, verify.

Only what is asked for is packed: of Bouncy Castle and Kotlin's library, the classes that ours
reach; of ONNX Runtime, all but its telemetry.
"""

import re
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from align import PAGE, Entry, check_aligned, write_aligned
from classfiles import references
from fetch import ONNXRUNTIME, BuildError, fetched
from jvm import DEMO, compile_kotlin, compile_library, library_classpath, run
from shrink import PLATFORM, dex, reached

APP = DEMO / "app/src/main"
HERE = Path(__file__).parent
ABIS = ("arm64-v8a", "x86_64")
MIN_SDK, TARGET_SDK = 26, 34
PERMISSIONS = {
    "android.permission.ACCESS_NETWORK_STATE": "for the job that waits for an unmetered network",
    "android.permission.INTERNET": "for the federation that the user joins",
    "android.permission.POST_NOTIFICATIONS": "for the notification while it learns",
}
JOBS = "android.permission.BIND_JOB_SERVICE"
"""What the system must hold to start our job; nothing that we ask for."""
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")


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
    dex(packed, work, work / "stubs", [work / "kept.pro"], MIN_SDK)
    aligned = work / "aligned.apk"
    pack(resources, work, {"digits.rootlet": bundle, "publisher.hex": publisher}, aligned)
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
        content = path.read_text()
        if 'cleartextTrafficPermitted="true"' in content:
            raise BuildError(f"{path.name}: permits cleartext traffic")
        if 'src="user"' in content:
            raise BuildError(f"{path.name}: trusts authorities that whoever holds the phone added")
    if "<provider" in manifest:
        raise BuildError("AndroidManifest.xml: declares a provider; the app needs none, and "
                         "ONNX Runtime's telemetry comes as one")  # fmt: skip


def link(app: Path, work: Path) -> Path:
    """The APK with resources and manifest, and R.java beside it."""
    run(["aapt2", "compile", "--dir", app / "res", "-o", work / "res.zip"], "aapt2 compile")
    target = work / "resources.apk"
    run(
        ["aapt2", "link", "-I", FRAMEWORK, "--manifest", app / "AndroidManifest.xml",
         "--java", work / "gen", "--proguard", work / "kept.pro", "-o", target, work / "res.zip"],
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


def pack(resources: Path, work: Path, assets: Mapping[str, Path], target: Path) -> None:
    """Adds code, assets and native libraries; these are stored, to be mapped as they lie."""
    with (
        zipfile.ZipFile(resources) as linked,
        zipfile.ZipFile(fetched(ONNXRUNTIME) / "onnxruntime.aar") as aar,
    ):
        entries = [
            Entry(info.filename, linked.read(info), stored=info.compress_type == zipfile.ZIP_STORED)
            for info in linked.infolist()
        ]
        for path in sorted((work / "dex").glob("*.dex")):
            entries.append(Entry(path.name, path.read_bytes(), stored=False))
        for name, path in assets.items():
            entries.append(Entry(f"assets/{name}", path.read_bytes(), stored=False))
        for abi in ABIS:
            for name in ("libonnxruntime.so", "libonnxruntime4j_jni.so"):
                content = aar.read(f"jni/{abi}/{name}")
                entries.append(Entry(f"lib/{abi}/{name}", content, stored=True))
    write_aligned(entries, target)


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


def check_manifest(tree: str) -> None:
    """Holds the manifest as it is in the APK, as aapt2 prints it, to what the app promises.

    Raises:
        BuildError: Names what is declared, or is not.
    """
    if "E: provider" in tree:
        raise BuildError("the manifest in the APK declares a provider")
    for name in ("usesCleartextTraffic", "allowBackup", "extractNativeLibs"):
        if not re.search(rf":{name}\(0x[0-9a-f]+\)=false$", tree, re.MULTILINE):
            raise BuildError(f"the manifest in the APK does not say {name}=false")
    if ":networkSecurityConfig(" not in tree:
        raise BuildError("the manifest in the APK names no networkSecurityConfig")
    asked = set(re.findall(r'"(android\.permission\.\w+)" \(Raw', tree)) - {JOBS}
    if asked != set(PERMISSIONS):
        raise BuildError(f"the APK asks for {sorted(asked)}; {sorted(PERMISSIONS)} are due")


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
    run(["zipalign", "-c", "-p", "4", apk], "zipalign -c")  # another's eyes, for pages of 4 KB
    check_aligned(apk)
    about = run(["aapt2", "dump", "badging", apk], "aapt2 dump badging")
    if f"sdkVersion:'{MIN_SDK}'" not in about or f"targetSdkVersion:'{TARGET_SDK}'" not in about:
        raise BuildError(f"not for API {MIN_SDK} and {TARGET_SDK}:\n{about}")
    abis = re.findall(
        r"'([^']+)'", next(x for x in about.splitlines() if x.startswith("native-code"))
    )
    if set(abis) != set(ABIS):
        raise BuildError(f"native code for {abis}; {ABIS} are due")
    check_manifest(
        run(["aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", apk], "aapt2 dump")
    )
    with zipfile.ZipFile(apk) as archive:
        code = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".dex"))
    if b"Lai/onnxruntime/telemetry/" in code:
        raise BuildError("telemetry classes of ONNX Runtime are in the APK")
    return (
        f"{apk}\n  {apk.stat().st_size / 2**20:.1f} MiB; {', '.join(abis)}; signed by "
        f"{', '.join(schemes)}; libraries aligned to {PAGE // 1024} KB; code {len(code)} bytes; "
        f"API {MIN_SDK} to {TARGET_SDK}"
    )
