"""Two processes over gloo train what one process trains."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from rootlet_server.training import train

# Every gradient is a sum of at most 60 terms, added up in another order: relative error at most
# 60 * 2^-24 of its terms in each of 14 steps, on the way that the weights have gone.
ROUNDING = 60 * 14 * 2.0**-24
TWO = {"processes": 2}
CASES = {
    "ddp": {"engine": TWO | {"strategy": "ddp"}},
    "ddp in parts": {"engine": TWO | {"strategy": "ddp", "accumulation": 3}},
    "fsdp2": {"engine": TWO | {"strategy": "fsdp2"}},
    "fsdp2 offloaded in parts": {
        "engine": TWO
        | {"strategy": "fsdp2", "cpu_offload": True, "accumulation": 2, "checkpointing": True}
    },
    "another order": {"engine": TWO | {"strategy": "ddp"}, "training": {"seed": 1}},
    "sign": {"engine": TWO | {"strategy": "ddp", "compression": "sign"}},
}


def start(nets_path, folder, cases, processes=2):
    out = folder / "found.npz"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    run = subprocess.run(
        [sys.executable, *launcher, str(nets_path), str(out), json.dumps(cases)],
        check=False, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return [np.load(folder / f"found-{rank}.npz") for rank in range(processes)]


@pytest.fixture(scope="module")
def two(nets_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    resumed = {"engine": TWO | {"strategy": "fsdp2"}, "optimizer": {"name": "adamw"}}
    half = resumed | {"training": {"checkpoint_every": 7}, "out": str(folder / "run")}
    return start(nets_path, folder, CASES | {"fsdp2 adamw": half}), folder


@pytest.fixture(scope="module")
def one(nets):
    start_, end = nets.flat(nets.residual()), train(nets.residual(), nets.digits(), nets.config())
    end = nets.flat(end.model)
    return end.numpy(), ROUNDING * float((end - start_).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ddp", "ddp in parts", "fsdp2", "fsdp2 offloaded in parts"])
def test_two_processes_are_one(case, two, one):
    (first, second), _ = two
    end, bound = one
    assert np.abs(first[case] - end).max() <= bound
    np.testing.assert_array_equal(first[case], second[case])


@pytest.mark.slow
def test_the_bound_tells_another_order_of_the_examples(two, one):
    assert np.abs(two[0][0]["another order"] - one[0]).max() > 100 * one[1]


@pytest.mark.slow
def test_one_bit_gradients_learn_and_are_not_the_plain_ones(two, one):
    (first, second), _ = two
    np.testing.assert_array_equal(first["sign"], second["sign"])
    assert np.abs(first["sign"] - one[0]).max() > 100 * one[1]
    assert first["sign/measured"][0] < 2.25  # ln 10 = 2.30 is what a model that knows nothing has


@pytest.mark.slow
def test_a_sharded_checkpoint_goes_on_in_one_process(two, nets):
    """Adam's state is sharded in two and read whole; the second half agrees to rounding.

    Adam divides by the root of squared gradients, so a relative rounding of a gradient moves a
    weight by no more than that share of the rate: the same bound, with Adam's way in it.
    """
    import shutil

    (first, _), folder = two
    steps = sorted((folder / "run" / "checkpoints").iterdir())
    shutil.rmtree(steps[-1])
    case = {"optimizer": {"name": "adamw"}, "training": {"checkpoint_every": 7}}
    again = train(nets.residual(), nets.digits(), nets.config(**case), out=folder / "run")
    assert again.resumed_from_step == 7
    np.testing.assert_allclose(nets.flat(again.model).numpy(), first["fsdp2 adamw"], atol=1e-4)


def test_the_number_of_processes_must_be_the_one_configured(nets):
    from rootlet_server.training.errors import FullTrainingConfigError

    config = nets.config(engine={"strategy": "ddp", "processes": 2})
    with pytest.raises(FullTrainingConfigError, match=r"engine.processes=2, but this run has 1"):
        train(nets.residual(), nets.digits(), config)
