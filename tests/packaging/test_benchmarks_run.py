"""The benchmarks still run. Nothing is timed here: a tiny model, once."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LAST_LINES = {
    "bench_step_time.py --quick": "int8 dfa / int8 backprop, tiny, batch 2: ratio ",
    "bench_feedback.py --quick": "int8 / float32 where int8 is taken, worst: ratio ",
    "bench_quantised_base.py --quick": "int8 / float32, convolutional models, worst: ratio ",
    "bench_private_step.py --quick": (
        "int8 dfa, clipped, as a device runs it / Opacus hooks, tiny, "
    ),
    "bench_memory.py --quick": "growth of memory, A frozen / A learns, tiny, batch 2: ",
    "bench_store.py --quick": "sealed / plain, append and read, worst: ratio ",
    "bench_full_training.py --quick": "throughput, train / by hand: ratio ",
    "bench_secure_aggregation.py --quick": "mask loop / AES-256-CTR: ratio ",
    "bench_footprint.py --list-only": "installed size, rootlet / flwr + torch: ratio ",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", LAST_LINES)
def test_a_benchmark_ends_with_its_ratio(command: str) -> None:
    script, option = command.split()
    result = subprocess.run(
        [sys.executable, BENCHMARKS / script, option],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(LAST_LINES[command])
