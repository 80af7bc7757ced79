"""What a private fit reports: the mechanism as data, and figures that are not private."""

from collections.abc import Callable
from dataclasses import dataclass

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
        neighbours: data sets that differ by one unit more or less.
    """

    steps: int
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    unit: str = "example"
    neighbours: str = "add-or-remove-one"


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
        stopped: whether ``progress`` ended it early.
        resumed_from_step: steps that an earlier, unfinished call had taken; 0 for a fresh start.
    """

    steps: int
    spent: PrivacySpent
    loss_not_private: float
    metric_not_private: float
    seconds: float
    stopped: bool
    resumed_from_step: int
