"""The drift alarm of a client: has the app's model become less sure of what it sees?"""

import threading

import numpy as np
import numpy.typing as npt

from rootlet_runtime.drift import LossDrift


class ConfidenceDrift:
    """Watches ``1 - max_k p_k`` of every prediction; tells once, until ``begin``.

    Attributes:
        drifted: Whether it has told since the last ``begin``.
    """

    def __init__(self) -> None:
        self.drifted = False
        self._test = LossDrift()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Another adapter is in use: what it is sure of is measured anew."""
        with self._lock:
            self.drifted = False
            self._test.reset()

    def saw(self, outputs: npt.NDArray[np.float32]) -> bool:
        """Takes outputs ``[N, K]``; whether this is the moment to tell."""
        doubts = 1 - outputs.max(axis=1).astype(np.float64)
        with self._lock:
            alarms = [self._test.update(float(doubt)) for doubt in doubts]
            tells = any(alarms) and not self.drifted
            self.drifted = self.drifted or tells
        return tells
