"""The packages' tables of contents are exact and sorted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rootlet_server
from rootlet_server import compiler


@pytest.mark.parametrize("module", [rootlet_server, compiler], ids=lambda m: m.__name__)
def test_every_name_is_there_and_in_order(module):
    assert module.__all__ == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("module", [rootlet_server, compiler], ids=lambda m: m.__name__)
def test_what_is_imported_is_what_is_exported(module):
    source = Path(module.__file__).read_text()
    imported = re.findall(
        rf"from {module.__name__}\.[\w.]+ import (\([^)]*\)|.*)", source
    ) + re.findall(r"from rootlet_server\.compiler import (\([^)]*\))", source)
    names = {name for part in imported for name in re.findall(r"\w+", part)}
    assert names == set(module.__all__)


def test_what_a_publisher_configures_is_at_the_top():
    for name in ("BlockBudget", "LoraConfig", "MixedConfig", "PrivacyConfig", "TrainingConfig"):
        assert getattr(rootlet_server, name) is getattr(compiler, name)
