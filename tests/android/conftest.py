"""The SuperLink of the integration tests, for devices in Kotlin."""

import importlib.util
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
BUILD = TESTS.parent / "android_demo/build"


def _loaded(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_integration = _loaded("integration_fixtures", TESTS / "integration/conftest.py")
superlink = _integration.superlink
open_superlink = _integration.open_superlink
read_result = _integration.read_result


@pytest.fixture
def make_certificates():
    """Write the certificates of an authority and of a server, into a folder."""
    return _integration.make_certificates


@pytest.fixture(scope="session")
def java_command():
    """The command that runs a main class of the Kotlin tests, which `.ci/android` built."""
    sys.path.insert(0, str(BUILD))
    jvm = _loaded("jvm", BUILD / "jvm.py")
    classpath = jvm.classpath_of_tests(jvm.OUT)
    return lambda main: jvm.java_command(classpath, main)
