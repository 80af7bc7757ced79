"""What encryption costs the example store: appending with a flush, reading, opening, observing.

    python tests/benchmarks/bench_store.py [--rounds 7] [--quick]

Two stores with the same examples, one plain and one sealed with a key file, take turns in folders
of one disk. A batch is 32 examples, observed and then flushed: fsync is in the time, as on a device
that writes once a second. Reading is ``train()`` and ``holdout()``, from files in the page cache.
``observe`` is timed alone; it copies one example and hands it over in both.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from report import print_heading, print_table, with_spread

from rootlet.store import ExampleStore
from rootlet.vault import open_vault
from rootlet_runtime.manifest import TensorSpec

BATCH = 32
CASES = {
    "64 float32 (0.3 kB)": ("float32", (64,), 1024),
    "28x28 float32 (3 kB)": ("float32", (28, 28), 1024),
    "96x96x3 uint8 (28 kB)": ("uint8", (96, 96, 3), 256),
    "224x224x3 uint8 (151 kB)": ("uint8", (224, 224, 3), 128),
}
Times = dict[str, float]


def opened(folder: Path, keystore: str | None, x: TensorSpec, capacity: int) -> ExampleStore:
    """A store that writes when it is flushed only."""
    y = TensorSpec(name="y", dtype="int64", shape=(None,))
    folder.mkdir(exist_ok=True)
    vault = open_vault(folder, keystore)
    return ExampleStore(
        folder / "examples", x, y, capacity=capacity, vault=vault, sync_interval_s=3600.0
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(folder: Path, keystore: str | None, x: TensorSpec, rows: np.ndarray) -> Times:
    """One store from its first example to its last reading; seconds."""
    store = opened(folder, keystore, x, len(rows))
    label = np.int64(1)
    observing = flushing = 0.0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        observing += timed(lambda: [store.observe(row, label) for row in batch])  # noqa: B023
        flushing += timed(store.flush)
    store.close()
    opening = time.perf_counter()
    store = opened(folder, keystore, x, len(rows))
    opening = time.perf_counter() - opening
    reading = timed(lambda: (store.train(), store.holdout()))
    assert len(store.train()[0]) + len(store.holdout()[0]) == len(rows)
    size = sum(path.stat().st_size for path in (folder / "examples").iterdir())
    store.close()
    return {
        "observe": observing / len(rows),
        "append": (observing + flushing) / len(rows),
        "read": reading / (2 * len(rows)),
        "open": opening,
        "bytes": size / len(rows),
    }


def measured(x: TensorSpec, rows: np.ndarray, rounds: int, place: Path) -> dict[str, list[Times]]:
    """Every round of both stores; who begins changes from round to round."""
    found: dict[str, list[Times]] = {"plain": [], "sealed": []}
    for n in range(rounds + 1):
        for name in sorted(found, reverse=bool(n % 2)):
            folder = place / name
            times = run(folder, "file" if name == "sealed" else None, x, rows)
            shutil.rmtree(folder)
            if n:  # the first round warms up
                found[name].append(times)
    return found


def main() -> None:
    """Prints a table, and the worst ratio last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few examples, once")
    parser.add_argument("--place", type=Path, help="folder on the disk to be measured")
    arguments = parser.parse_args()
    print_heading(str(__doc__).splitlines()[0], ["numpy", "cryptography"])
    rng, rounds, rows_, worst = np.random.default_rng(0), arguments.rounds, [], 0.0
    cases = list(CASES.items())
    if arguments.quick:
        rounds, cases = 1, cases[:1]
    with tempfile.TemporaryDirectory(dir=arguments.place) as place:
        for title, (dtype, shape, count) in cases:
            count = 64 if arguments.quick else count  # noqa: PLW2901
            x = TensorSpec(name="x", dtype=dtype, shape=(None, *shape))
            rows = rng.integers(0, 200, (count, *shape)).astype(dtype)
            found = measured(x, rows, rounds, Path(place))

            def ratio(key: str, found: dict[str, list[Times]] = found) -> list[float]:
                pairs = zip(found["sealed"], found["plain"], strict=True)
                return [sealed[key] / plain[key] for sealed, plain in pairs]

            def micros(name: str, key: str, found: dict[str, list[Times]] = found) -> str:
                return f"{1e6 * median(times[key] for times in found[name]):.1f}"

            worst = max(worst, median(ratio("append")), median(ratio("read")))
            rows_.append(
                [
                    title,
                    *(f"{micros('plain', k)} / {micros('sealed', k)}" for k in ("append", "read")),
                    with_spread(ratio("append")),
                    with_spread(ratio("read")),
                    f"{micros('plain', 'observe')} / {micros('sealed', 'observe')}",
                    f"{1e3 * median(times['open'] for times in found['sealed']):.1f}",
                    f"{median(ratio('bytes')):.3f}",
                ]
            )
    print_table(
        (
            "example",
            "append with flush, us: plain / sealed",
            "read, us: plain / sealed",
            "append, ratio",
            "read, ratio",
            "observe, us: plain / sealed",
            "open sealed, ms",
            "bytes, ratio",
        ),
        rows_,
    )
    print(f"sealed / plain, append and read, worst: ratio {worst:.2f}")


if __name__ == "__main__":
    main()
