"""From classes to Dalvik bytecode: which classes are packed, and R8 over them.

R8 takes out what nothing reaches, and does nothing else: no renaming (an error's class name goes to
the server, a stage's into the mailbox) and no optimising, for nothing here has run on Android.
"""

import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from classfiles import is_annotation, references
from fetch import KOTLIN, R8, BuildError, debian_jar, fetched
from jvm import onnxruntime_jar, run

TELEMETRY = re.compile(r"ai/onnxruntime/(telemetry/.*|TelemetryInitializer.*)\.class")
PLATFORM = ("java/", "javax/", "android/", "dalvik/")
RULES = Path(__file__).with_name("shrink.pro")
_JAVA = "8"
"""How a JDK's ct.sym names the release whose API we compile against."""


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


def dex(
    classes: Mapping[str, bytes], work: Path, stubs: Path, rules: Sequence[Path], min_sdk: int
) -> None:
    """Dalvik bytecode of what ``rules`` keep, and what that reaches, in ``work/dex``.

    Raises:
        BuildError: R8 refuses, a class that is nowhere included.
    """
    (work / "dex").mkdir()
    r8(classes, work, rules, ["--min-api", str(min_sdk), "--lib", stubs], work / "dex")


def r8(
    classes: Mapping[str, bytes],
    work: Path,
    rules: Sequence[Path],
    options: Sequence[str | Path],
    target: Path,
) -> None:
    """What ``rules`` keep, and what that reaches, in the form that ``options`` ask for.

    Raises:
        BuildError: R8 refuses, a class that is nowhere included.
    """
    jar, platform = work / "classes.jar", work / "java8.jar"
    tools = fetched(KOTLIN)  # R8 asks for the annotations that classes carry, and leaves them out
    annotations = {
        name: content
        for library in ("kotlin-stdlib.jar", "annotations-13.0.jar")
        for name, content in _jar(tools / library).items()
        if is_annotation(content)
    }
    with zipfile.ZipFile(jar, "w") as archive:
        for name, content in sorted({**annotations, **classes}.items()):
            archive.writestr(name, content)
    java_api(platform)
    kept = [part for path in (RULES, *rules) for part in ("--pg-conf", path)]
    run(
        ["java", "-Xmx1g", "-cp", fetched(R8) / "bundletool.jar", "com.android.tools.r8.R8",
         "--release", *options, "--lib", platform, *kept, "--output", target, jar],
        "R8",
    )  # fmt: skip


def java_api(target: Path) -> None:
    """The API of JDK 8 as this machine's JDK keeps it for its compiler, as a jar of classes.

    Raises:
        BuildError: This JDK has none.
    """
    home = Path(shutil.which("javac") or "javac").resolve().parents[1]
    symbols = home / "lib/ct.sym"
    if not symbols.is_file():
        raise BuildError(f"{symbols} is not there: install openjdk-17-jdk-headless")
    with zipfile.ZipFile(symbols) as source, zipfile.ZipFile(target, "w") as jar:
        for name in source.namelist():
            releases, _, path = name.partition("/")
            _, _, path = path.partition("/")  # its module
            stem, suffix = path[:-4], path[-4:]
            if _JAVA in releases and suffix == ".sig" and stem.startswith(("java/", "javax/")):
                jar.writestr(f"{stem}.class", source.read(name))


def _jar(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as jar:
        return {
            name: jar.read(name)
            for name in jar.namelist()
            if name.endswith(".class") and not name.startswith("META-INF/")
        }
