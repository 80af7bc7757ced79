"""Engines: what runs a bundle's graphs. Each is imported when a trainer opens it."""

import importlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rootlet_runtime.batches import AnyArray, Batch
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.errors import MissingExtraError
from rootlet_runtime.feedback_part import Overlay
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.state import TrainState

__all__ = ["ENGINES", "Engine", "largest_step", "open_engine"]

# Engine name: the module that holds it, and what pip installs for it.
ENGINES = {
    "litert": ("rootlet_runtime.engines.litert", "'rootlet[litert]'"),
    "onnxruntime": ("rootlet_runtime.engines.onnx", "rootlet"),
}


class Engine(Protocol):
    """Holds one adapter and its optimiser's state, and runs a bundle's graphs on them."""

    def load_state(self, state: TrainState) -> None:
        """Takes over the adapter and optimiser state; ``state`` fits the bundle."""

    def load_feedback(self, overlay: Overlay) -> None:
        """Learns with these constants from the next step on.

        Raises:
            FeedbackPartError: the engine cannot exchange them.
        """

    def state(self) -> TrainState:
        """The current state, as copies."""

    def step(self, batch: Batch, learning_rate: float) -> tuple[float, float]:
        """One training step: loss and metric. If it fails, the state is the one before."""

    def evaluate(self, batch: Batch) -> tuple[float, float, float]:
        """Sums over the batch of loss, metric and weight."""

    def gradients(self, batch: Batch, max_grad_norm: float) -> dict[str, AnyArray]:
        """The outputs of the grads graph by name: clipped sums, and sums that are not private.

        Only where the bundle has that graph.
        """

    def encode(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """The latents [B, ...]. Only where the bundle has that graph."""

    def predict(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """The outputs [B, K]."""

    def release(self) -> None:
        """Frees what the graphs hold; the state stays, and the next call opens them again."""


def largest_step(name: str, manifest: Manifest) -> int:
    """The most examples that one training step of this engine takes."""
    if name == "litert" and manifest.litert is not None:
        return min(manifest.max_batch, manifest.litert.batches[-1])
    return manifest.max_batch


def open_engine(name: str, bundle: Bundle, num_threads: int) -> Engine:
    """Opens an engine on a verified bundle.

    Raises:
        ValueError: no engine of this name, or ``num_threads`` below 1.
        MissingExtraError: the engine's library is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r}: unknown; choose one of {', '.join(sorted(ENGINES))}")
    if num_threads < 1:
        raise ValueError(f"num_threads {num_threads}: must be at least 1")
    module_name, requirement = ENGINES[name]
    try:
        engine: Engine = importlib.import_module(module_name).open_engine(bundle, num_threads)
    except ImportError as error:
        raise MissingExtraError(
            f"the engine {name!r} is not installed ({error}); run: pip install {requirement}"
        ) from error
    return engine
