"""Ray is taken where it runs, and never started from here."""

import pytest

from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation import simulate


def test_ray_is_not_started_here_because_it_listens_everywhere(bundle, population, training):
    with pytest.raises(SimulationConfigError, match="listens on every address"):
        simulate(bundle, population, rounds=1, seed=9, training=training, workers="ray://local")


def test_other_words_are_no_workers(bundle, population, training):
    with pytest.raises(SimulationConfigError, match="ray://HOST:PORT"):
        simulate(bundle, population, rounds=1, seed=9, training=training, workers="many")
