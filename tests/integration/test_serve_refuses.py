"""What `rootlet serve` refuses before any process starts, each with its own error."""

import resource
import signal
import subprocess
import sys

import pytest

from rootlet.ledger import FILE
from rootlet_server.cli import main
from rootlet_server.federation.privacy import FederationAccount, FederationPrivacy


@pytest.fixture
def serve(mlp_bundle, tmp_path, capsys):
    """`serve(*options)`: the exit code and the error."""

    def run(*options):
        code = main(
            list(
                map(
                    str,
                    [
                        *("serve", "--bundle", mlp_bundle.path, "--port", 0, "--wait", 1),
                        *("--trusted-key", mlp_bundle.public_key_path),
                        *("--signing-key", mlp_bundle.signing_key_path),
                        *("--state-dir", tmp_path / "state", *options),
                    ],
                )
            )
        )
        return code, capsys.readouterr().err

    return run


PRIVATE = ("--privacy", "device", "--clip-norm", 1, "--noise-multiplier", 1)


def test_a_budget_that_is_spent(serve, tmp_path):
    privacy = FederationPrivacy(unit="device", max_norm=1, noise_multiplier=1, epsilon=9)
    FederationAccount(tmp_path / "state", privacy).begin(1, 1, "digits 1")
    code, error = serve(*PRIVATE, "--epsilon", 5)
    assert code == 1
    assert "above the budget of 5; 4.38 is spent: nothing more is released" in error


def test_a_broken_ledger(serve, tmp_path):
    privacy = FederationPrivacy(unit="device", max_norm=1, noise_multiplier=1, epsilon=9)
    FederationAccount(tmp_path / "state", privacy).begin(1, 1, "digits 1")
    path = tmp_path / "state" / FILE
    path.write_bytes(path.read_bytes().replace(b'"steps": 1', b'"steps": 0'))
    code, error = serve(*PRIVATE, "--epsilon", 9)
    assert code == 1
    assert "ledger" in error


def test_a_damaged_database(serve, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "federation.sqlite3").write_bytes(b"no database" * 100)
    code, error = serve()
    assert code == 1
    assert "cannot be used as the federation's checkpoints" in error
    assert "move it away to start from round 1" in error


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--resume",), "has no round of digits"),
        (PRIVATE, "needs --epsilon too; no bound or budget is assumed"),
        (("--clip-norm", 1), "is given without --privacy"),
        ((*PRIVATE, "--epsilon", 1, "--strategy", "krum"), "reads more than secure aggregation"),
        ((*PRIVATE, "--epsilon", 1, "--compression", "int8"), "private updates travel whole"),
        (("--privacy", "example", "--clip-norm", 1, "--noise-multiplier", 1, "--epsilon", 1,
          "--sample-rate", 0.1), "needs the bundle's grads graph"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(serve, options, why):
    code, error = serve(*options)
    assert code == 1
    assert why in error


def test_a_cohort_that_can_never_meet_the_threshold(serve, tmp_path):
    assert main(["enrol", "authority", str(tmp_path / "ca")]) == 0
    code, error = serve("--min-devices", 3, "--enrolment-authority", tmp_path / "ca.pub.pem")
    assert code == 1
    assert "min_devices is 3, and a secure round needs 5" in error


def limited():
    """The disk is full after 100 kB of a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_loses_no_finished_round(tmp_path):
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from rootlet_server.errors import RoundCheckpointError\n"
        "from rootlet_server.federation.checkpoint import RoundCheckpoint\n"
        "path, number = Path(sys.argv[1]), 0\n"
        "state = RoundCheckpoint(manifest_sha256='ab' * 32, round=0,\n"
        "                        adapter={'w': np.zeros(2000, np.float32)})\n"
        "try:\n"
        "    while number < 100:\n"
        "        state.save(path)\n"
        "        print(state.round, flush=True)\n"
        "        size = 2000 * (2 + state.round)\n"
        "        state = state.next({'w': np.ones(size, np.float32)}, {}, 'fedavg')\n"
        "        number += 1\n"
        "except RoundCheckpointError as error:\n"
        "    print('refused', error, flush=True)\n"
        "    last = RoundCheckpoint.load(path, manifest_sha256='ab' * 32)\n"
        "    print('kept', last.round, flush=True)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "federation.sqlite3"],
        preexec_fn=limited, check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = found.stdout.split("\n")
    refused = next(line for line in lines if line.startswith("refused"))
    assert "free some space" in refused
    rounds = [int(line) for line in lines if line.isdigit()]
    assert f"kept {rounds[-1]}" in lines
