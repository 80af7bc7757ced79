"""What a round takes, before it is run and after it, by the bundle's table of work."""

import math

from rootlet.continual import Continual
from rootlet.protocol import TrainRequest
from rootlet_runtime.energy import Work, count_work
from rootlet_runtime.fit import FitResult
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.trainer import DEFAULT_BATCH_SIZE


def needed_work(
    manifest: Manifest,
    asked: TrainRequest,
    continual: Continual | None,
    *,
    examples: int,
    held_out: int,
) -> Work:
    """The steps with their replayed rows, the teacher's outputs and the latents.

    Args:
        manifest: The bundle's.
        asked: The request.
        continual: What is replayed and distilled; None for nothing.
        examples: Examples to train on.
        held_out: Examples that the guard measures on; 0 where they are those to train on.
    """
    replay = None if continual is None else continual.replay
    replayed = 0 if replay is None else len(replay.buffer)
    size = min(asked.batch_size, examples + replayed)
    rows = replay.rows_per_batch(size) if replay is not None and replayed else 0
    steps = asked.epochs * math.ceil(examples / (size - rows))
    encoded = 0 if manifest.latent is None else examples + held_out
    taught = examples if continual is not None and continual.distillation else 0
    return count_work(
        manifest.cost,
        train_examples=asked.epochs * examples + steps * rows,
        train_batches=steps,
        predict_examples=encoded + taught,
        predict_batches=math.ceil(encoded / DEFAULT_BATCH_SIZE)
        + math.ceil(taught / DEFAULT_BATCH_SIZE),
    )


def spent_j(manifest: Manifest, result: FitResult, measured: int) -> float:
    """Estimated joules of a training, and of measuring `measured` examples before it and after."""
    work = count_work(
        manifest.cost,
        train_examples=result.examples,
        train_batches=result.steps,
        predict_examples=2 * measured,
        predict_batches=2 * math.ceil(measured / DEFAULT_BATCH_SIZE),
    )
    return work.estimated_j
