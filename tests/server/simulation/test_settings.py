"""`rootlet simulate`: a TOML file, its refusals, and a run from the shell that goes on."""

import numpy as np
import pytest

from rootlet_server import cli
from rootlet_server.simulation.result import read_clients, read_rounds
from rootlet_server.simulation.settings import load_settings

FILE = """
bundle = "{bundle}"
trusted_keys = ["{key}"]
rounds = 2
cohort_size = 6
seed = 3
chunk_size = 4
test = "data.npz"
strategy = {{ name = "FedAvgM", server_momentum = 0.5 }}
[population]
data = "data.npz"
kind = "dirichlet"
clients = 8
alpha = 1.0
seed = 1
shift = {{ noise = 0.1 }}
[training]
epochs = 1
batch_size = 8
[latency]
failure_rate = 0.1
[availability]
kind = "diurnal"
low = 0.5
high = 1.0
[pace]
over_selection = 1.2
"""


@pytest.fixture
def file(mlp_bundle, tmp_path):
    """`file(old, new)`: the path of the file above with a text in it replaced."""
    np.savez(tmp_path / "data.npz", x=mlp_bundle.x[:200], y=mlp_bundle.y[:200])

    def write(old="", new=""):
        text = FILE.format(bundle=mlp_bundle.path, key=mlp_bundle.public_key_path)
        assert old in text
        path = tmp_path / "fleet.toml"
        path.write_text(text.replace(old, new) if old else text)
        return path

    return write


def test_a_file_says_everything(file):
    settings = load_settings(file())
    assert len(settings.population) == 8
    assert settings.strategy.server_momentum == 0.5
    assert settings.training == {"epochs": 1, "batch_size": 8}
    assert settings.arguments["latency"].failure_rate == 0.1
    assert settings.arguments["pace"].over_selection == 1.2
    assert settings.arguments["availability"].low == 0.5
    assert settings.arguments["cohort_size"] == 6


def test_from_the_shell_and_on_after_an_interruption(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["simulate", str(file()), "--out", str(out), "--rounds", "1"]) == 0
    assert "1 rounds" in capsys.readouterr().out
    assert cli.main(["simulate", str(file()), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "round 2, clients" in text
    assert "round 1, clients" not in text  # it was kept
    rounds = read_rounds(out / "rounds.parquet")
    assert [each.round for each in rounds] == [0, 1, 2]
    assert all(each.asked == 8 for each in rounds[1:])
    clients = read_clients([out / "clients.parquet"])
    assert set(clients["status"]) <= {"ok", "lost", "unused", "empty"}
    assert (out / "plot.png").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 2", "round = 2", "the file has round"),
        ("rounds = 2", "", "rounds is missing"),
        ("rounds = 2", "rounds = true", "rounds = True: another type"),
        ("rounds = 2", "rounds = [", "not TOML"),
        ("epochs = 1", "epoch = 1", "training has epoch"),
        ("failure_rate = 0.1", "failures = 0.1", "latency.*failures"),
        ("failure_rate = 0.1", "failure_rate = 2.0", "failure_rate 2.0"),
        ('kind = "diurnal"', 'kind = "lunar"', "availability.kind 'lunar'"),
        ('kind = "dirichlet"', 'kind = "random"', "population.kind 'random'"),
        ('kind = "dirichlet"', 'kind = "by_user"', "needs an array users"),
        ('name = "FedAvgM"', 'name = "os.system"', "strategy 'os.system'"),
        ('data = "data.npz"', "", "data is missing"),
        ("alpha = 1.0", "alpha = 0.0", "alpha 0.0"),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_one_line(file, capsys, old, new, message):
    path = file(old, new)
    assert cli.main(["simulate", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rootlet: ")
    import re

    assert re.search(message, error)
