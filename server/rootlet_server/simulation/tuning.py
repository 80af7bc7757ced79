"""The chunk size: how many clients at once are fastest, for this model on this machine.

Few clients leave time between operators; many leave the cache. Which is worse depends on both, so
it is measured once and remembered: a second run must cut the cohort as the first did, for sums of
floating-point numbers depend on how they are cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rootlet_runtime.durable import write_atomically
from rootlet_server.simulation.uploads import Upload
from rootlet_server.simulation.work import ChunkTask

if TYPE_CHECKING:
    from rootlet_runtime.bundle import Bundle
    from rootlet_server.simulation.batching import LocalTraining
    from rootlet_server.simulation.population import CheckedPopulation
    from rootlet_server.simulation.work import Worker

SIZES = (16, 32, 64, 128, 256, 512)
LIMIT_S = 4.0
CLEARLY = 0.95  # a larger chunk must take at most this share of the time
CACHE = "chunk-sizes.json"


def remembered_chunk_size(
    worker: Worker, bundle: Bundle, population: CheckedPopulation, training: LocalTraining
) -> int:
    """The chunk size of an earlier run of the same work here, or one that is measured now."""
    path = cache_folder() / CACHE
    try:
        known: dict[str, int] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        known = {}
    work = (bundle.manifest_sha256, training.batch_size, training.measure, torch.__version__,
            platform.processor(), platform.machine())  # fmt: skip
    key = hashlib.sha256(repr(work).encode()).hexdigest()[:24]
    if known.get(key) not in SIZES:
        known[key] = measured_chunk_size(worker, bundle, population, training)
        try:
            write_atomically(path, json.dumps(known, indent=1).encode())
        except OSError:
            return known[key]
    return known[key]


def measured_chunk_size(
    worker: Worker, bundle: Bundle, population: CheckedPopulation, training: LocalTraining
) -> int:
    """The fastest of ``SIZES`` on the population's own clients; smaller ones win ties."""
    having = [c for c in range(min(len(population), SIZES[-1])) if len(population.examples(c)[0])]
    if not having:
        return SIZES[0]
    best, best_s, begun = SIZES[0], float("inf"), time.monotonic()
    for size in SIZES:
        if size > len(having):
            break
        task = ChunkTask(
            clients=tuple(having[:size]), round=1, received=bundle.initial_adapter(),
            training=training, upload=Upload(partial=True),
        )  # fmt: skip
        each = min(_seconds(worker, task) for _ in range(2)) / size
        if each < best_s * CLEARLY:
            best, best_s = size, each
        if time.monotonic() - begun > LIMIT_S or each > 1.5 * best_s:
            break
    return best


def cache_folder() -> Path:
    """Where small things are remembered between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rootlet"


def _seconds(worker: Worker, task: ChunkTask) -> float:
    begun = time.process_time()
    worker.run(task)
    return time.process_time() - begun
