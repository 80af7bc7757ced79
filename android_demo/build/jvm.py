"""Compiles the library and its tests, and runs them on this machine's JVM.

The engine in the tests is ONNX Runtime's own Java API and its native library for Android x86-64, as
the app ships them, over a build of ONNX Runtime for Linux (`bionic/libc.c`).
"""

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fetch import KOTLIN, ONNXRUNTIME, BuildError, cache_folder, debian_jar, fetched

DEMO = Path(__file__).resolve().parents[1]
REPOSITORY = DEMO.parent
BIONIC = Path(__file__).with_name("bionic")
TESTS = DEMO / "core/src/test/kotlin"
OUT = cache_folder() / "out"
JVM_TARGET = "1.8"
"""Against the API of JDK 8: Android 8 lacks later ones, `ByteBuffer.position`'s type among them."""


def run(command: Sequence[str | Path], what: str) -> str:
    """The output of a tool.

    Raises:
        BuildError: It failed.
    """
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise BuildError(f"{what} failed:\n{done.stdout[-8000:]}")
    return done.stdout


def onnxruntime_jar(out: Path) -> Path:
    """ONNX Runtime's Java classes, out of the AAR."""
    with zipfile.ZipFile(fetched(ONNXRUNTIME) / "onnxruntime.aar") as aar:
        return Path(aar.extract("classes.jar", out / "aar"))


def library_classpath(out: Path) -> list[Path]:
    """What the library is compiled against."""
    return [
        fetched(KOTLIN) / "kotlin-stdlib.jar",
        onnxruntime_jar(out),
        debian_jar("bcprov-1.72.jar"),
    ]


def compile_kotlin(
    sources: Sequence[Path], classpath: Sequence[Path], target: Path, friend: Path | None = None
) -> None:
    """Compiles to classes for JVM 8; a warning is an error.

    ``friend``: classes whose internal members may be used, for tests.

    Raises:
        BuildError: The compiler refuses.
    """
    tools = fetched(KOTLIN)
    shutil.rmtree(target, ignore_errors=True)  # else classes outlive their sources
    own = ":".join(str(path) for path in sorted(tools.glob("*.jar")))
    command: list[str | Path] = ["java", "-Xmx1g", "-cp", own]
    command += [
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
        "-no-stdlib",
        "-no-reflect",
        "-Werror",
    ]
    command += [f"-Xjdk-release={JVM_TARGET}", "-jvm-target", JVM_TARGET]
    if friend is not None:
        command.append(f"-Xfriend-paths={friend}")
    command += ["-cp", ":".join(map(str, classpath)), "-d", target, *sources]
    run(command, "the Kotlin compiler")


def compile_library(out: Path) -> Path:
    """The library's classes; those of the same sources are not compiled again."""
    target, stamp = out / "core", out / "core.sha256"
    sources = sorted((DEMO / "core/src/main").rglob("*.kt"))
    digest = hashlib.sha256(KOTLIN.sha256.encode() + ONNXRUNTIME.sha256.encode())
    for path in (Path(__file__), *sources):
        digest.update(hashlib.sha256(path.name.encode() + path.read_bytes()).digest())
    if not (target.is_dir() and stamp.is_file() and stamp.read_text() == digest.hexdigest()):
        stamp.unlink(missing_ok=True)
        compile_kotlin(sources, library_classpath(out), target)
        stamp.write_text(digest.hexdigest())
    return target


def native_folder(out: Path) -> Path:
    """The native libraries under the names by which they ask for each other."""
    folder = out / "native"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetched(ONNXRUNTIME) / "onnxruntime.aar") as aar:
        name = "libonnxruntime4j_jni.so"
        (folder / name).write_bytes(aar.read(f"jni/x86_64/{name}"))
    engine = fetched(ONNXRUNTIME) / "libonnxruntime.so"
    for alias in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / alias).unlink(missing_ok=True)
        (folder / alias).symlink_to(engine)
    run(
        ["gcc", "-shared", "-fPIC", "-O1", f"-Wl,--version-script={BIONIC / 'libc.map'}",
         "-o", folder / "libc.so", BIONIC / "libc.c"],
        "the C compiler",
    )  # fmt: skip
    for alias in ("libm.so", "libdl.so"):
        (folder / alias).unlink(missing_ok=True)
        (folder / alias).symlink_to("libc.so")
    return folder


def compile_tests(out: Path) -> list[Path]:
    """The classpath of the library and its tests, compiled.

    Raises:
        BuildError: The compiler refuses.
    """
    library, classpath = compile_library(out), classpath_of_tests(out)
    compile_kotlin(sorted(TESTS.rglob("*.kt")), classpath[1:], out / "core-test", friend=library)
    return classpath


def classpath_of_tests(out: Path) -> list[Path]:
    """What `compile_tests` gives once more."""
    jars = map(debian_jar, ("junit4.jar", "hamcrest-2.2.jar"))
    return [out / "core-test", out / "core", *library_classpath(out), *jars]


def java_command(classpath: Sequence[Path], main: str, *options: str) -> list[str]:
    """The command that runs a main class; its arguments follow.

    Args:
        classpath: From `compile_tests`.
        main: Name of the class, with its package.
        options: For the JVM.
    """
    return ["java", "-Xmx768m", *options, "-cp", ":".join(map(str, classpath)), main]


def engine_options(out: Path) -> tuple[list[str], list[str]]:
    """What goes before `java` and after it, for what `native_folder` made to be found."""
    native = out / "native"
    return ["env", f"LD_LIBRARY_PATH={native}"], [f"-Donnxruntime.native.path={native}"]


def run_tests(out: Path, only: Sequence[str] = ()) -> None:
    """Runs the tests: every class of ``core/src/test`` whose name ends with ``Test``.

    Args:
        out: For classes and libraries.
        only: Names of test classes, without their package; all if empty.

    Raises:
        BuildError: It does not compile, or a test fails.
    """
    classpath = compile_tests(out)
    named = [path for path in sorted(TESTS.rglob("*.kt")) if path.stem.endswith("Test")]
    chosen = [
        ".".join(path.relative_to(TESTS).with_suffix("").parts)
        for path in named
        if not only or path.stem in only
    ]
    if not chosen:
        raise BuildError(f"no test class of {list(only)}; there are {[p.stem for p in named]}")
    native_folder(out)
    before, engine = engine_options(out)
    options = [f"-Drootlet.repository={REPOSITORY}", f"-Drootlet.reference={reference(out)}"]
    options.append(f"-Drootlet.python={python()}")
    command = java_command(classpath, "org.junit.runner.JUnitCore", *engine, *options)
    if subprocess.run([*before, *command, *chosen], check=False).returncode:
        raise BuildError("a test of the library failed")


def reference(out: Path) -> Path:
    """What the Python runtime computes, made anew from the tree."""
    folder = out / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    script = Path(__file__).with_name("reference.py")
    packages = ":".join(str(REPOSITORY / name) for name in ("device_runtime", "sdk", "server"))
    run(
        ["env", f"PYTHONPATH={packages}", python(), script, folder],
        f"{python()} (an environment with rootlet[server]; ROOTLET_PYTHON names another)",
    )
    return folder


def python() -> Path:
    """The interpreter that has rootlet, for tests that compare with it."""
    return Path(os.environ.get("ROOTLET_PYTHON", REPOSITORY / ".venv/bin/python"))
