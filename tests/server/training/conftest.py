"""``nets``: the model, data and configuration that the tests of full training share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

NETS = Path(__file__).with_name("nets.py")


@pytest.fixture(scope="session")
def nets():
    spec = importlib.util.spec_from_file_location("full_training_nets", NETS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nets_path() -> Path:
    return NETS


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
