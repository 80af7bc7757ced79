"""Elastic weights of one adapter: what local trainings must not undo, kept beside the adapter."""

import logging
from pathlib import Path

import numpy as np

from rootlet_runtime import ewc
from rootlet_runtime.array_files import ArrayFiles, Cipher
from rootlet_runtime.errors import AdapterError, CheckpointError
from rootlet_runtime.ewc import ElasticWeights
from rootlet_runtime.trainer import Trainer

EXAMPLES = 64
"""Examples of one training that its Fisher information is taken from."""
DECAY = 0.9
"""Of earlier Fisher information at each training (online EWC, Schwarz et al. 2018)."""

_NAME = "elastic"
_log = logging.getLogger(__name__)


class Elastic:
    """Adds each finished local training to what holds the adapter.

    Args:
        strength: Of the pull; 0 does nothing.
        trainer: Of the adapter.
        folder: Where it is kept.
        cipher: What it passes through on its way to the disk.
    """

    def __init__(
        self, strength: float, trainer: Trainer, folder: Path, cipher: Cipher | None = None
    ) -> None:
        self._strength, self._trainer = strength, trainer
        self._files = ArrayFiles(folder, cipher)
        self._kept = self._restored()

    @property
    def weights(self) -> ElasticWeights | None:
        """What the next training is held by; None at first."""
        return self._kept

    def learnt(self, x: np.ndarray, y: np.ndarray) -> None:
        """The trainer's adapter was accepted after a training on these examples.

        What the disk refuses is logged; the weights in memory go on.
        """
        if not self._strength:
            return
        rows = np.arange(min(EXAMPLES, len(x))) * len(x) // min(EXAMPLES, len(x))
        classifies = self._trainer.bundle.manifest.task == "classification"
        targets = None if classifies else y[rows]
        fisher = self._trainer.fisher(x[rows], np.random.default_rng(), targets)
        self._kept = ewc.consolidated(
            self._kept, fisher, self._trainer.adapter, strength=self._strength, decay=DECAY
        )
        try:
            ewc.save(self._kept, self._files, _NAME)
        except CheckpointError as error:
            _log.warning("the elastic weights were not kept: %s", error)

    def _restored(self) -> ElasticWeights | None:
        if not self._strength:
            return None
        try:
            found = ewc.restore(self._files, _NAME, self._trainer.bundle.manifest.adapter)
        except (AdapterError, CheckpointError) as error:
            _log.warning("elastic weights start anew: %s", error)
            return None
        if found is None:
            return None
        return ElasticWeights(fisher=found.fisher, anchor=found.anchor, strength=self._strength)
