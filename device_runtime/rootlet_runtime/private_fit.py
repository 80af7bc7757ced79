"""Training with differential privacy on the device (DP-SGD, Abadi et al. 2016).

A step draws every example with probability q, clips the gradient of each to C, adds noise and
divides by the number of examples that is to be expected, b = q N:

    g = (sum_{n drawn} min(1, C / ||g_n||) g_n  +  N(0, (sigma S)^2)) / b

and an optimiser outside the graph takes g. Adding or removing one example changes the sum by at
most S: C, and what rounding can add to it (:func:`sensitivity`). So each step is a Gaussian
mechanism of noise multiplier sigma on a Poisson sample of rate q. :class:`PrivacySpent` says so as
data, and an accountant turns it into epsilon.

Guarantees:

- The divisor is b, never the number drawn, which is secret; an empty sample is a step of noise.
- Noise and samples come from the operating system's generator and are kept nowhere. A resumed fit
  draws new ones, and counts the steps that may have been taken since its checkpoint as taken.
- The loss and metric of a private fit are plain sums over drawn examples: for this device's screen.
  Whoever sends them away gives up the guarantee.
"""

import math
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rootlet_runtime import optimizers
from rootlet_runtime.array_files import Cipher
from rootlet_runtime.batches import AnyArray, gather
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.engines import Engine
from rootlet_runtime.errors import DataError, NonFiniteLossError
from rootlet_runtime.fit_checkpoint import FitCheckpoint, fingerprint
from rootlet_runtime.manifest import SUMS
from rootlet_runtime.noise import SCALE, RandomBytes, discrete_gaussian
from rootlet_runtime.privacy_ledger import FIT_BYTES
from rootlet_runtime.private_report import (
    ADD_OR_REMOVE,
    ZERO_OUT,
    PrivacySpent,
    PrivateFitResult,
    PrivateProgress,
)
from rootlet_runtime.replay import ReplayBuffer
from rootlet_runtime.sampling import poisson_sample
from rootlet_runtime.schedule import RateSchedule
from rootlet_runtime.spending import Spending
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import Arrays

Sums = dict[str, npt.NDArray[np.float64]]
_EndedBy = Literal["steps", "progress", "energy"]
FLOAT32_ROUNDING = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class PrivateTraining:
    """The mechanism of each step.

    Attributes:
        max_grad_norm: C, the length to which every example's gradient is clipped.
        noise_multiplier: sigma, the noise's standard deviation over the sensitivity.
        sample_rate: q, the probability with which an example enters a step.
        expected_batch_size: b; None takes q times the number of examples, which is then public.

    Raises:
        DataError: a value outside its bounds.
    """

    max_grad_norm: float
    noise_multiplier: float
    sample_rate: float
    expected_batch_size: float | None = None

    def __post_init__(self) -> None:
        _within("max_grad_norm", self.max_grad_norm, 1e-6, 1e6, "1 is usual")
        _within("noise_multiplier", self.noise_multiplier, 0.01, 1e4, "fit trains without noise")
        _within("sample_rate", self.sample_rate, 1e-9, 1, "the expected batch over the examples")
        if self.expected_batch_size is not None:
            _within("expected_batch_size", self.expected_batch_size, 1e-6, 1e9, "leave it out")


def _within(name: str, value: float, low: float, high: float, remedy: str) -> None:
    if not low <= value <= high:
        raise DataError(f"{name} {value}: must lie in {low}..{high}; {remedy}")


def sensitivity(max_grad_norm: float, *, expected: float, batch: int) -> float:
    """S: how far one example can move the sum that is released, noise and grid apart.

    The graph adds up to ``batch`` terms of length C at most in float32, which is off by no more
    than ``batch 2^-24`` of their lengths together. Of both of two neighbouring data sets, and for
    as many terms as a Poisson sample has but once in 10^12 (a Chernoff bound):
    ``C (1 + 2 batch (b + 9 sqrt(b) + 24) 2^-24)``.
    """
    most = expected + 9 * math.sqrt(expected) + 24
    return max_grad_norm * (1 + 2 * batch * most * FLOAT32_ROUNDING)


def released(sums: Sums, std: float, random_bytes: RandomBytes = os.urandom) -> Sums:
    """The sums on a grid of ``std / 2^32``, with noise of standard deviation ``std``.

    Rounding to the grid moves a sum of d numbers by another ``sqrt(d) 2^-32 std`` at most, which
    :func:`noise_std` counts.
    """
    grid = std / SCALE
    noisy: Sums = {}
    for name, array in sums.items():
        noise = discrete_gaussian(array.size, random_bytes).reshape(array.shape)
        whole = np.rint(array / grid).astype(np.int64) + noise
        noisy[name] = whole.astype(np.float64) * grid
    return noisy


def noise_std(noise_multiplier: float, largest_change: float, parameters: int) -> float:
    """``sigma S`` with the grid's rounding in S: s solves ``s = sigma (S + sqrt(d) 2^-32 s)``."""
    return (
        noise_multiplier * largest_change / (1 - noise_multiplier * math.sqrt(parameters) / SCALE)
    )


@dataclass(kw_only=True)
class _Position:
    """What a checkpoint notes. ``charged``: steps taken, and those that may have been.

    ``fit`` names the fit, so that a replay buffer is charged for it once, however often it is
    stopped; ``energy_j`` is what earlier calls of it have spent.
    """

    fit: str
    energy_j: float = 0.0
    step: int = 0
    charged: int = 0
    epoch: int = 0
    loss_sum: float = 0.0
    metric_sum: float = 0.0
    weight_sum: float = 0.0

    def add(self, sums: Mapping[str, float], epoch: int) -> None:
        self.step += 1
        self.charged += 1
        if epoch != self.epoch:
            self.epoch, self.loss_sum, self.metric_sum, self.weight_sum = epoch, 0.0, 0.0, 0.0
        self.loss_sum += sums["loss_sum"]
        self.metric_sum += sums["metric_sum"]
        self.weight_sum += sums["weight_sum"]


@dataclass(kw_only=True)
class PrivateRun:
    """The loop; inputs are checked before it is made. ``batch_size`` is the graph's batch.

    ``x`` and ``y`` end with the examples of ``replay``, which is charged when the loop ends, in
    whatever way. ``spending`` is entered.
    """

    bundle: Bundle
    engine: Engine
    x: AnyArray
    y: AnyArray
    privacy: PrivateTraining
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: RateSchedule
    progress: PrivateProgress | None
    checkpoint_dir: Path | None
    checkpoint_every: int
    cipher: Cipher
    replay: ReplayBuffer | None
    spending: Spending

    @property
    def steps(self) -> int:
        """``epochs / q``, up to the next whole number."""
        return math.ceil(self.epochs / self.privacy.sample_rate)

    def run(self) -> PrivateFitResult:
        """Takes all steps, or those until ``progress`` returns ``False``.

        Raises:
            NonFiniteLossError: the adapter left the finite numbers; the state of before is back.
            CheckpointError: a checkpoint is damaged or cannot be written.
        """
        started = time.monotonic()
        before = self.engine.state()
        checkpoint = FitCheckpoint(
            folder=self.checkpoint_dir,
            bundle=self.bundle,
            fingerprint=self._fingerprint(before.digest()) if self.checkpoint_dir else "",
            cipher=self.cipher,
        )
        ended = self.checkpoint_dir is None
        position = _Position(fit=secrets.token_hex(FIT_BYTES))
        try:
            position = self._resume(checkpoint, position)
            self.spending.begin()
            self.spending.resume(position.energy_j, position.step)
            resumed_from = position.step
            ended_by = self._train(position, checkpoint)
            if ended_by == "steps":
                ended = True
                checkpoint.remove()
            else:
                self._save(position, checkpoint, ahead=0)
        except BaseException as error:
            self.engine.load_state(before)
            if isinstance(error, NonFiniteLossError):
                ended = True
                checkpoint.remove()
            raise
        finally:
            if self.replay is not None:
                self.replay.charge_private(self._spent(position), fit=position.fit, ended=ended)
        return PrivateFitResult(
            steps=position.step,
            spent=self._spent(position),
            loss_not_private=_ratio(position.loss_sum, position.weight_sum),
            metric_not_private=_ratio(position.metric_sum, position.weight_sum),
            seconds=time.monotonic() - started,
            energy=self.spending.energy(final=True),
            ended_by=ended_by,
            resumed_from_step=resumed_from,
        )

    def _train(self, position: _Position, checkpoint: FitCheckpoint) -> _EndedBy:
        """Takes the steps that are left."""
        first = position.step
        while position.step < self.steps:
            if position.step and not self.spending.room():
                return "energy"
            if position.step == first or position.step % self.checkpoint_every == 0:
                self._save(position, checkpoint, ahead=self.checkpoint_every)
            sums = self._step(position)
            if self.progress is not None and position.step < self.steps:
                loss, metric = (_ratio(sums[name], sums["weight_sum"]) for name in SUMS[:2])
                if self.progress(position.step, self.steps, loss, metric) is False:
                    return "progress"
        return "steps"

    def _step(self, position: _Position) -> dict[str, float]:
        """One step; the sums of loss, metric and weight, which are not private."""
        plain = dict.fromkeys(SUMS, 0.0)
        sums: Sums = {
            spec.name: np.zeros([size or 0 for size in spec.shape])
            for spec in self.bundle.manifest.adapter
        }
        rows = poisson_sample(len(self.x), self.privacy.sample_rate)
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            batch = gather(self.x, self.y, part, self.batch_size)
            found = self.engine.gradients(batch, self.privacy.max_grad_norm)
            for name in sums:
                sums[name] += found[f"grads/{name}"]
            plain = {name: value + float(found[name]) for name, value in plain.items()}
        self.spending.trained(len(rows), math.ceil(len(rows) / self.batch_size))
        noisy, step = released(sums, self._noise_std()), position.step
        position.add(plain, int(step * self.privacy.sample_rate))
        self._update(noisy, step)
        return plain

    def _update(self, noisy: Sums, step: int) -> None:
        state, manifest = self.engine.state(), self.bundle.manifest
        divisor = self._expected()
        gradients: Arrays = {k: (v / divisor).astype(np.float32) for k, v in noisy.items()}
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            adapter, optimizer = optimizers.update(
                manifest.optimizer,
                state.adapter,
                gradients,
                state.optimizer,
                learning_rate=self.learning_rate * self.schedule.factor(step, self.steps),
                step=state.steps + 1,
                hyperparameters=manifest.hyperparameters,
            )
        if not all(np.isfinite(array).all() for array in (*adapter.values(), *optimizer.values())):
            raise NonFiniteLossError(
                f"step {step + 1} of {self.steps} left values that are not finite with "
                f"learning_rate {self.learning_rate}; the adapter from before this fit is back. "
                "Lower the learning rate"
            )
        self.engine.load_state(
            TrainState(adapter=adapter, optimizer=optimizer, steps=state.steps + 1)
        )

    def _expected(self) -> float:
        given = self.privacy.expected_batch_size
        return self.privacy.sample_rate * len(self.x) if given is None else given

    def _noise_std(self) -> float:
        privacy = self.privacy
        drawn = privacy.sample_rate * len(self.x)
        change = sensitivity(privacy.max_grad_norm, expected=drawn, batch=self.batch_size)
        parameters = sum(spec.elements for spec in self.bundle.manifest.adapter)
        return noise_std(privacy.noise_multiplier, change, parameters)

    def _spent(self, position: _Position) -> PrivacySpent:
        return PrivacySpent(
            steps=position.charged,
            sample_rate=self.privacy.sample_rate,
            noise_multiplier=self.privacy.noise_multiplier,
            max_grad_norm=self.privacy.max_grad_norm,
            neighbours=ADD_OR_REMOVE if self.replay is None else ZERO_OUT,
        )

    def _fingerprint(self, start: str) -> str:
        settings = (self.bundle.manifest_sha256, start, self.epochs, self.batch_size)
        rate = (self.learning_rate.hex(), self.schedule)
        return fingerprint(("private", *settings, *rate, self.privacy), (self.x, self.y))

    def _resume(self, checkpoint: FitCheckpoint, new: _Position) -> _Position:
        found = checkpoint.read()
        if found is None:
            return new
        self.engine.load_state(found.state)
        notes: dict[str, Any] = {**found.notes["position"]}
        return _Position(**notes)

    def _save(self, position: _Position, checkpoint: FitCheckpoint, *, ahead: int) -> None:
        """Writes a checkpoint that charges the steps until the next one, in case it is needed."""
        charged = position.charged + min(ahead, self.steps - position.step)
        state = self.engine.state()
        changed = {"charged": charged, "energy_j": self.spending.total_j}
        notes = {"position": {**asdict(position), **changed}}
        checkpoint.write(state, state, notes)


def _ratio(total: float, weight: float) -> float:
    return total / weight if weight else math.nan
