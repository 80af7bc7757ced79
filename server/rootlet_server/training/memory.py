"""Out of memory: recognised on CPU and CUDA, and answered by what can still be turned on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rootlet_server.training.errors import MemoryExhaustedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootlet_server.training.config import FullTrainingConfig

CPU_SIGN = "DefaultCPUAllocator"


@contextmanager
def memory_advised(config: FullTrainingConfig) -> Iterator[None]:
    """Turn an allocator's error into one that says what to turn on.

    Raises:
        MemoryExhaustedError: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryExhaustedError(_words(config, str(error))) from error
    except RuntimeError as error:
        if CPU_SIGN not in str(error):
            raise
        raise MemoryExhaustedError(_words(config, str(error))) from error


def _words(config: FullTrainingConfig, error: str) -> str:
    first = error.splitlines()[0] if error else "out of memory"
    return f"memory ran out ({first}). Turn on: {'; '.join(advice(config))}."


def advice(config: FullTrainingConfig) -> list[str]:
    """What is not yet turned on and saves memory, cheapest first."""
    engine, options = config.engine, []
    parts = engine.processes * engine.accumulation
    if not engine.checkpointing and config.privacy is None:
        options.append("engine.checkpointing = true (activations are recomputed)")
    if config.batch_size // parts > 1:
        if config.privacy is None:
            options.append(
                f"engine.accumulation = {2 * engine.accumulation} (the same batch in smaller parts)"
            )
        else:
            options.append(f"batch_size = {config.batch_size // 2}")
    if engine.precision == "float32" and config.privacy is None:
        options.append('engine.precision = "bf16" (half the bytes of most activations)')
    if engine.strategy != "fsdp2" and config.privacy is None:
        options.append('engine.strategy = "fsdp2" with more processes (weights are sharded)')
    elif not engine.cpu_offload and engine.strategy == "fsdp2":
        options.append("engine.cpu_offload = true (shards wait in the host's memory)")
    return options or ["a smaller model, or a machine with more memory"]
