"""What checkpointing saves: peak memory and time of a training process, by rule.

    python -m rootlet_server.bench.checkpoint

A transformer of four layers (width 192, 64 tokens) in float32, compiled by every rule and trained
in a process of its own at batches of 1 and 32. The growth is from batch 1 to batch 32.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rootlet_server.bench.feedback import Layer
from rootlet_server.compiler import CompileConfig, LoraConfig, compile_bundle

PEAK = Path(__file__).with_name("peak_main.py")
RULES = ("dfa", "backprop", "backprop_checkpointed")
WIDTH, TOKENS, LAYERS = 192, 64, 4


class Encoder(nn.Module):
    """Tokens [N, 64, 32] to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(32, WIDTH)
        self.layers = nn.Sequential(*(Layer(WIDTH) for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 64, 32] to [N, 10]."""
        out: Tensor = self.head(self.layers(self.embedding(x)).mean(1))
        return out


def main() -> None:
    """Print a row for each rule."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, x = Encoder(), torch.randn(64, TOKENS, 32)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, x=x.numpy(), y=np.arange(64) % 10)
        for rule in RULES:
            bundle = Path(folder) / f"{rule}.rootlet"
            config = CompileConfig(
                rule=rule,  # type: ignore[arg-type]
                base_dtype="float32",
                adapter=LoraConfig(rank=8),
            )
            compile_bundle(
                model, calibration_x=x[:16], config=config, name="checkpoint", version=1,
                signing_key=None, out=bundle,
            )  # fmt: skip
            rows = [_peak(bundle, data, size) for size in (1, 32)]
            (one, _), (many, seconds) = rows
            print(
                f"| {rule} | {one:.0f} | {many:.0f} | {many - one:.0f} | {seconds:.2f} |",
                flush=True,
            )


def _peak(bundle: Path, data: Path, batch_size: int) -> tuple[float, float]:
    """Peak resident memory in MB, and the seconds of the process."""
    start = time.perf_counter()
    found = subprocess.run(
        [sys.executable, str(PEAK), str(bundle), str(data), str(batch_size)],
        capture_output=True,
        check=True,
        text=True,
    )
    return int(found.stdout.split()[-1]) / 1024, time.perf_counter() - start


if __name__ == "__main__":
    main()
