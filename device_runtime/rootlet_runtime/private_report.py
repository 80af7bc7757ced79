"""What a private fit reports: the mechanism as data, and figures that are not private."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rootlet_runtime.energy import Energy

ADD_OR_REMOVE = "add-or-remove-one"
ZERO_OUT = "zero-out-one"

# (step from 1, steps, loss, metric) -> False to stop; loss and metric are not private.
PrivateProgress = Callable[[int, int, float, float], bool | None]


@dataclass(frozen=True, kw_only=True)
class PrivacySpent:
    """What an accountant charges: this many Gaussian mechanisms, each on a Poisson sample.

    Attributes:
        steps: how many, those that a crash may have hidden included.
        sample_rate: probability with which an example enters a step.
        noise_multiplier: the noise's standard deviation over the sensitivity.
        max_grad_norm: the clipping bound; it does not change what is spent.
        unit: what is protected.
        neighbours: which data sets are to be told apart: ``add-or-remove-one``, or, where a replay
            buffer took part, ``zero-out-one``: one unit is replaced by one that adds nothing, and
            the number and the order of the units are public.
    """

    steps: int
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    unit: str = "example"
    neighbours: str = ADD_OR_REMOVE


@dataclass(frozen=True, kw_only=True)
class PrivateFitResult:
    """What a private ``fit`` did.

    Attributes:
        steps: steps taken in all, those before a resume included.
        spent: for the accountant.
        loss_not_private: mean over the examples drawn in the last epoch; NaN where none was. It
            must not leave the device.
        metric_not_private: the same of accuracy or squared error.
        seconds: of this call.
        energy: of this call, measured or estimated; it tells how many examples were drawn, and must
            not leave the device.
        ended_by: ``steps``; or ``progress`` or ``energy``, where it was stopped between two steps.
        resumed_from_step: steps that an earlier, unfinished call had taken; 0 for a fresh start.
    """

    steps: int
    spent: PrivacySpent
    loss_not_private: float
    metric_not_private: float
    seconds: float
    energy: Energy
    ended_by: Literal["steps", "progress", "energy"]
    resumed_from_step: int

    @property
    def stopped(self) -> bool:
        """Whether it is unfinished: the same call, made again, goes on."""
        return self.ended_by != "steps"
