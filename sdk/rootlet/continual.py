"""How a device goes on learning: what it replays, whom it listens to, and what it refuses.

A replay buffer is a bounded sample of all examples that the device ever trained on. It outlives
them: where the store keeps the newest ones only, the buffer is what is left of the older ones. It
is raw training data, and is erased with it.
"""

import hashlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rootlet.errors import ConfigError
from rootlet_runtime.array_files import ArrayFiles, Cipher
from rootlet_runtime.errors import CheckpointError, DataError
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.quality_gate import QualityGate, Verdict, example_errors
from rootlet_runtime.replay import Replay, ReplayBuffer, ReplaySettings
from rootlet_runtime.spending import Spending
from rootlet_runtime.trainer import DEFAULT_BATCH_SIZE, Trainer

_BUFFER, _OFFERED = "replay", "offered"
_log = logging.getLogger(__name__)

Examples = tuple[np.ndarray, np.ndarray]
Predict = Callable[[npt.ArrayLike], npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """How a device goes on learning.

    Attributes:
        replay: What the replay buffer keeps; None keeps and replays nothing.
        replay_fraction: Share of each batch that is replayed.
        distillation: Weight, in [0, 1), of the last accepted adapter's outputs beside the labels.
            The bundle must be compiled for it.
        ewc: Strength with which a local training is held to what earlier ones learnt (elastic
            weights); 0 for none. The bundle must have the graph ``grads``.
        drift: Whether an alarm watches the confidence of ``predict``; classification only.
        gate: What an adapter must pass before ``predict`` uses it; None lets every one pass.

    Raises:
        ConfigError: A value is outside its bounds.
    """

    replay: ReplaySettings | None = None
    replay_fraction: float = 0.5
    distillation: float = 0.0
    ewc: float = 0.0
    drift: bool = False
    gate: QualityGate | None = field(default_factory=QualityGate)

    def __post_init__(self) -> None:
        if not 0 < self.replay_fraction < 1:
            raise ConfigError(
                f"replay_fraction is {self.replay_fraction}: give a share between 0 and 1"
            )
        if not 0 <= self.distillation < 1:
            raise ConfigError(
                f"distillation is {self.distillation}: give a weight of at least 0 and below 1"
            )
        if not (math.isfinite(self.ewc) and self.ewc >= 0):
            raise ConfigError(f"ewc is {self.ewc}: give a strength of at least 0")

    def check(self, manifest: Manifest) -> None:
        """Whether a bundle can do what is asked for.

        Raises:
            ConfigError: It cannot.
        """
        if self.distillation and not manifest.distils:
            raise ConfigError(
                f"distillation is {self.distillation}, but bundle {manifest.name} takes no "
                "teacher: compile it with CompileConfig(distillation=True), or leave it out"
            )
        if self.ewc and "grads" not in manifest.graphs:
            raise ConfigError(
                f"ewc is {self.ewc}, but bundle {manifest.name} has no grads graph: compile it "
                "with CompileConfig(privacy=PrivacyConfig()), or leave it out"
            )
        if self.drift and manifest.task != "classification":
            raise ConfigError(
                "drift is True, but the outputs of a regression tell no confidence: feed "
                "rootlet_runtime.drift.LossDrift with losses, or leave it out"
            )


class Continual:
    """One device's replay buffer and gate.

    Args:
        config: What is wanted.
        manifest: The bundle's.
        folder: Where the buffer is kept.
        held_out: The examples kept from training, asked for at each judgement.
        cipher: What the buffer passes through on its way to the disk.

    Attributes:
        erasures: How often the examples were erased.

    Raises:
        ConfigError: The bundle cannot do what ``config`` asks for.
    """

    def __init__(
        self,
        config: ContinualConfig,
        manifest: Manifest,
        folder: Path,
        held_out: Callable[[], Examples | None],
        cipher: Cipher | None = None,
    ) -> None:
        config.check(manifest)
        self._config, self._manifest, self._held_out = config, manifest, held_out
        self._files = ArrayFiles(folder, cipher)
        self._rng = np.random.default_rng()
        self._lock = threading.Lock()
        self.erasures = 0
        self._buffer = self._restored()
        self._offered = self._restored_digests()

    @property
    def replay(self) -> Replay | None:
        """What a training mixes into its batches."""
        if self._buffer is None:
            return None
        return Replay(buffer=self._buffer, fraction=self._config.replay_fraction)

    @property
    def distillation(self) -> float:
        """Weight of the last accepted adapter's outputs."""
        return self._config.distillation

    @property
    def ewc(self) -> float:
        """Strength of elastic weights."""
        return self._config.ewc

    @property
    def remembered(self) -> int:
        """Examples in the replay buffer."""
        return 0 if self._buffer is None else len(self._buffer)

    def held_out(self) -> Examples | None:
        """The examples kept from training; None where there are none."""
        found = self._held_out()
        return None if found is None or len(found[0]) == 0 else found

    def learnt(self, trainer: Trainer, examples: Examples, epochs: int, *, erasures: int) -> None:
        """Offers the examples of a finished training to the buffer, and writes it.

        An example that the training before had too is not offered again, so that each counts once.
        What the disk refuses is logged; the buffer in memory goes on.

        Args:
            trainer: Has trained on them.
            examples: What was trained on, replayed ones apart.
            epochs: Passes over them.
            erasures: The count before the training; if it has grown, nothing is offered.
        """
        with self._lock:
            if self._buffer is not None and self.erasures == erasures:
                self._offer(self._buffer, trainer, examples, epochs)

    def _offer(
        self, buffer: ReplayBuffer, trainer: Trainer, examples: Examples, epochs: int
    ) -> None:
        digests = _digests(examples)
        new = ~np.isin(digests, self._offered)
        if new.any():
            x, y = (part[new] for part in examples)
            trainer.remember(buffer, x, y, self._rng, uses=epochs)
        self._offered = digests
        try:
            buffer.save(self._files, _BUFFER)
            self._files.write(_OFFERED, {"digests": digests}, {})
        except CheckpointError as error:
            _log.warning("the replay buffer was not kept: %s", error)

    def judge(
        self, before: Predict, after: Predict, spending: Spending | None = None
    ) -> Verdict | None:
        """What the gate says of an adapter; None where there is no gate or nothing to judge by.

        Args:
            before: Outputs of the last accepted adapter.
            after: Outputs of the one in question.
            spending: Counts the predictions.
        """
        held_out = self.held_out()
        if self._config.gate is None or held_out is None:
            return None
        x, y = held_out
        if spending is not None:
            spending.evaluated(2 * len(x), 2 * math.ceil(len(x) / DEFAULT_BATCH_SIZE))
        task = self._manifest.task
        return self._config.gate.judge(
            example_errors(task, before(x), y),
            example_errors(task, after(x), y),
            relative=task == "regression",
        )

    def erase(self) -> None:
        """Forgets every example, in memory and on disk, without waiting for a training.

        A training under way goes on with what it has; none of its examples is kept.
        """
        with self._lock:
            self.erasures += 1
            for name in (_BUFFER, _OFFERED):
                self._files.remove(name)
            self._offered = np.zeros(0, np.uint64)
            if self._config.replay is not None:
                self._buffer = ReplayBuffer(self._manifest, self._config.replay)

    def _restored(self) -> ReplayBuffer | None:
        if self._config.replay is None:
            return None
        try:
            buffer = ReplayBuffer(self._manifest, self._config.replay)
        except DataError as error:
            raise ConfigError(f"replay: {error}") from error
        try:
            buffer.restore(self._files, _BUFFER)
        except CheckpointError as error:
            _log.warning("the replay buffer starts empty: %s", error)
        return buffer

    def _restored_digests(self) -> npt.NDArray[np.uint64]:
        try:
            found = self._files.read(_OFFERED)
        except CheckpointError as error:
            _log.warning("%s", error)
            found = None
        return np.zeros(0, np.uint64) if found is None else found[0]["digests"]


def _digests(examples: Examples) -> npt.NDArray[np.uint64]:
    """Eight bytes for each example, equal for equal ones."""
    x, y = (np.ascontiguousarray(part) for part in examples)
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(a.tobytes() + b.tobytes(), digest_size=8).digest())
            for a, b in zip(x, y, strict=True)
        ],
        np.uint64,
    )
