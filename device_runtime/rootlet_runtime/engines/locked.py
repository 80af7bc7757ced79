"""An engine used from several threads: one call at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import numpy.typing as npt

from rootlet_runtime.batches import AnyArray, Batch
from rootlet_runtime.engines import Engine
from rootlet_runtime.feedback_part import Overlay
from rootlet_runtime.state import TrainState


class LockedEngine:
    """Hands each call on while it holds a lock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = RLock()

    @contextmanager
    def borrowed(self, state: TrainState) -> Iterator[None]:
        """Holds another state inside ``with``; other threads wait, and never see it."""
        with self._lock:
            before = self._engine.state()
            self._engine.load_state(state)
            try:
                yield
            finally:
                self._engine.load_state(before)

    def load_state(self, state: TrainState) -> None:
        """As ``Engine.load_state``."""
        with self._lock:
            self._engine.load_state(state)

    def load_feedback(self, overlay: Overlay) -> None:
        """As ``Engine.load_feedback``."""
        with self._lock:
            self._engine.load_feedback(overlay)

    def state(self) -> TrainState:
        """As ``Engine.state``."""
        with self._lock:
            return self._engine.state()

    def step(self, batch: Batch, learning_rate: float) -> tuple[float, float]:
        """As ``Engine.step``."""
        with self._lock:
            return self._engine.step(batch, learning_rate)

    def evaluate(self, batch: Batch) -> tuple[float, float, float]:
        """As ``Engine.evaluate``."""
        with self._lock:
            return self._engine.evaluate(batch)

    def gradients(self, batch: Batch, max_grad_norm: float) -> dict[str, AnyArray]:
        """As ``Engine.gradients``."""
        with self._lock:
            return self._engine.gradients(batch, max_grad_norm)

    def encode(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """As ``Engine.encode``."""
        with self._lock:
            return self._engine.encode(x)

    def predict(self, x: AnyArray) -> npt.NDArray[np.float32]:
        """As ``Engine.predict``."""
        with self._lock:
            return self._engine.predict(x)

    def release(self) -> None:
        """As ``Engine.release``."""
        with self._lock:
            self._engine.release()
