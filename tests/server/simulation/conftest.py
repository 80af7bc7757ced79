"""A small bundle, clients of its data, and what they are asked to do."""

import logging

import numpy as np
import pytest

from rootlet_runtime.bundle import Bundle
from rootlet_server.simulation.batching import LocalTraining
from rootlet_server.simulation.population import ArrayPopulation

TRAINING = LocalTraining(epochs=2, batch_size=8, learning_rate=0.02)


@pytest.fixture(scope="session", autouse=True)
def quiet():
    logging.getLogger("flwr").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as opened:
        yield opened


@pytest.fixture(scope="session")
def exact_bundle(float_bundle):
    """The same on a float32 base, for what two engines must do alike."""
    with Bundle.load(float_bundle.path, trusted_keys=float_bundle.trusted_keys) as opened:
        yield opened


@pytest.fixture(scope="session")
def population(mlp_bundle):
    """Twelve clients of 1 to 40 examples."""
    sizes = np.array([17, 1, 40, 8, 9, 16, 3, 24, 30, 7, 2, 33])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.random.default_rng(5).permutation(len(mlp_bundle.y))[: starts[-1]]
    return ArrayPopulation(x=mlp_bundle.x, y=mlp_bundle.y, rows=rows, starts=starts)


@pytest.fixture
def training():
    return TRAINING


@pytest.fixture
def test_examples(mlp_bundle):
    return mlp_bundle.x[200:], mlp_bundle.y[200:]
