"""Ray is taken where it runs, and never started from here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation import simulate


@pytest.mark.slow
def test_a_cluster_gives_the_bits_of_this_process(mlp_bundle, tmp_path):
    """A real cluster and its client, in a network namespace where all there is is loopback."""
    script, out = Path(__file__).with_name("ray_in_a_namespace.py"), tmp_path / "found.npz"
    command = ["unshare", "--map-root-user", "--net", sys.executable, script, mlp_bundle.path, out]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    found = np.load(out)
    names = {name.partition("/")[2] for name in found.files}
    assert names
    for name in names:
        np.testing.assert_array_equal(found[f"ray/{name}"], found[f"here/{name}"])


def test_ray_is_not_started_here_because_it_listens_everywhere(bundle, population, training):
    with pytest.raises(SimulationConfigError, match="listens on every address"):
        simulate(bundle, population, rounds=1, seed=9, training=training, workers="ray://local")


def test_other_words_are_no_workers(bundle, population, training):
    with pytest.raises(SimulationConfigError, match="ray://HOST:PORT"):
        simulate(bundle, population, rounds=1, seed=9, training=training, workers="many")
