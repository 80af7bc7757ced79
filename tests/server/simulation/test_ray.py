"""Ray actors give the sums that this process gives, from 127.0.0.1 and nowhere else."""

from pathlib import Path

import numpy as np
import pytest

from rootlet_server.simulation import simulate

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def listening_addresses():
    """Addresses, in the kernel's hexadecimal, on which this process and its children listen."""
    mine = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            if b"ROOTLET_TEST_RAY=1" not in environment:
                continue
            for link in (folder / "fd").iterdir():
                target = str(link.readlink())
                if target.startswith("socket:["):
                    mine.add(target[8:-1])
        except OSError:
            continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in mine:
                found.add(columns[1].partition(":")[0])
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_on_this_machine_gives_the_same_bits(bundle, population, training, monkeypatch):
    monkeypatch.setenv("ROOTLET_TEST_RAY", "1")
    options = {"rounds": 2, "seed": 9, "training": training, "chunk_size": 5}
    heard = set()

    from rootlet_server.simulation import Progress

    by_ray = simulate(
        bundle, population, workers="ray://local",
        progress=Progress(round=lambda _: heard.update(listening_addresses())), **options,
    )  # fmt: skip
    here = simulate(bundle, population, **options)
    for name, value in here.adapter.items():
        np.testing.assert_array_equal(by_ray.adapter[name], value)
    assert heard
    assert heard <= LOOPBACK
