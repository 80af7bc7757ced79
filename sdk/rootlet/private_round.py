"""A round by DP-SGD on a device: trained on secret samples, with nothing but the adapter told."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rootlet.energy_account import Allowance
from rootlet.errors import RequestRefusedError
from rootlet.privacy_terms import PrivacyTerms
from rootlet.protocol import Arrays, TrainRequest
from rootlet_runtime.private_fit import PrivateTraining
from rootlet_runtime.private_report import ZERO_OUT, PrivacySpent
from rootlet_runtime.schedule import ROUND
from rootlet_runtime.trainer import Trainer

if TYPE_CHECKING:
    from rootlet.participant import DataSource


def planned_steps(asked: TrainRequest, terms: PrivacyTerms) -> PrivacySpent:
    """What a round by DP-SGD spends: ``epochs / sample_rate`` steps."""
    return PrivacySpent(
        steps=math.ceil(asked.epochs / terms.sample_rate),
        sample_rate=terms.sample_rate,
        noise_multiplier=terms.noise_multiplier,
        max_grad_norm=terms.max_norm,
    )


def of_device(clip_norm: float, noise_multiplier: float) -> PrivacySpent:
    """What a round spends of a device whose whole update is clipped, one among a known number."""
    return PrivacySpent(
        steps=1,
        sample_rate=1.0,
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip_norm,
        unit="device",
        neighbours=ZERO_OUT,
    )


class PrivateRounds:
    """Trains rounds by DP-SGD.

    Args:
        data: The device's examples.
        allowance: What a round may spend.
        checkpoint_dir: Where an interrupted training goes on from; None to start it anew.
    """

    def __init__(
        self, data: "DataSource", allowance: Allowance, checkpoint_dir: Path | None
    ) -> None:
        self._data, self._allowance, self._checkpoint_dir = data, allowance, checkpoint_dir

    def train(
        self,
        trainer: Trainer,
        asked: TrainRequest,
        terms: PrivacyTerms,
        should_stop: Callable[[], bool],
    ) -> tuple[Arrays, PrivacySpent] | None:
        """The adapter after a round and what it spent; None where it was interrupted.

        Raises:
            RequestRefusedError: There are no examples, or it needs more energy than it may spend.
            DataError: The bundle has no graph for it.
        """
        x, y = self._data.train()
        if len(x) == 0:
            raise RequestRefusedError("this device has no examples yet; at least 1 is needed")
        trainer.load_adapter(asked.adapter)
        self._allowance.begin()
        result = trainer.fit_private(
            x,
            y,
            privacy=PrivateTraining(
                max_grad_norm=terms.max_norm,
                noise_multiplier=terms.noise_multiplier,
                sample_rate=terms.sample_rate,
                expected_batch_size=float(asked.batch_size),
            ),
            epochs=asked.epochs,
            learning_rate=asked.learning_rate,
            schedule=ROUND,
            batch_size=min(asked.batch_size, trainer.max_batch),
            progress=lambda *_: not should_stop(),
            checkpoint_dir=self._checkpoint_dir,
            energy_limit_j=self._allowance.limit_j,
        )
        self._allowance.charge(result.energy, final=True)
        if result.ended_by == "energy":
            raise RequestRefusedError(
                f"stopped after {result.steps} steps, for this device spends at most "
                f"{self._allowance.limit_j:.3g} J on a round: ask for fewer epochs"
            )
        return None if result.stopped else (trainer.adapter, result.spent)
