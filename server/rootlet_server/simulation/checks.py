"""What excludes what: settings that cannot be together are refused before anything starts."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation.strategies import averages, require_averaging
from rootlet_server.simulation.uploads import SecureAggregation, Upload

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from rootlet_server.simulation.pace import Pace
    from rootlet_server.simulation.privacy import DevicePrivacy


def check_cohort(
    cohort: int | None, population: int, strategy: Strategy, pace: Pace,
    privacy: DevicePrivacy | None,
) -> None:  # fmt: skip
    """A cohort that can be drawn, by one of two who could draw it.

    Raises:
        SimulationConfigError: it cannot be.
    """
    asked = population if cohort is None else math.ceil(cohort * pace.over_selection)
    if cohort is not None and cohort < 1:
        raise SimulationConfigError(f"cohort_size {cohort}: must be at least 1")
    if asked > population:
        raise SimulationConfigError(
            f"cohort_size {cohort} at over_selection {pace.over_selection:g} asks {asked} clients "
            f"and the population has {population}; lower one of them"
        )
    fraction = getattr(strategy, "fraction_train", 1.0)
    if cohort is not None and fraction != 1.0:
        raise SimulationConfigError(
            f"cohort_size {cohort} and the strategy's fraction_train {fraction} both choose the "
            "cohort; leave one of them out"
        )
    least = max(getattr(strategy, name, 0) for name in ("min_train_nodes", "min_available_nodes"))
    surely = population if cohort is None else (pace.buffer_size or asked)
    surely = 1 if privacy is not None else surely  # a Poisson cohort can be small
    if least > surely:
        raise SimulationConfigError(
            f"the strategy waits for min_train_nodes and min_available_nodes, {least}, and a "
            f"round may offer it {surely}; lower both"
        )
    if cohort is None and (privacy is not None or pace.buffer_size is not None):
        raise SimulationConfigError(
            "privacy and buffered rounds need cohort_size: the simulator draws the cohort itself"
        )
    if privacy is not None and pace.buffer_size is not None:
        raise SimulationConfigError(
            "privacy and buffer_size: the accountant knows Poisson cohorts, not buffers; leave "
            "one of them out"
        )


def choose_upload(  # noqa: PLR0917 (one caller)
    strategy: Strategy,
    privacy: DevicePrivacy | None,
    secure: SecureAggregation | None,
    cohort: int,
    pre_aggregate: bool | None,
    pace: Pace,
    workers: int | str,
) -> Upload:
    """How updates leave a chunk: each, or sums where the strategy reads nothing else.

    Raises:
        PreAggregationError: sums are wanted, and the strategy may read more.
        SimulationConfigError: settings that exclude each other.
    """
    if privacy is not None or secure is not None:
        if pace.buffer_size is not None:
            raise SimulationConfigError("secure_aggregation and buffer_size exclude each other")
        what = "privacy" if privacy is not None else "secure aggregation"
        require_averaging(strategy, f"under {what} a server sees a sum only")
    if secure is not None:
        bound = secure.bound or (None if privacy is None else privacy.clipping_norm)
        if bound is None:
            raise SimulationConfigError(
                "secure_aggregation without privacy needs bound: where a value saturates"
            )
        secure = SecureAggregation(**{**asdict(secure), "bound": bound})
        # a Poisson cohort exceeds its mean by ten deviations less than once in 10^23
        secure.check_cohort(math.ceil(cohort * pace.over_selection + 10 * math.sqrt(cohort)))
    if pre_aggregate:
        require_averaging(strategy, "pre_aggregate=True answers with averages of chunks")
    if pre_aggregate and pace.buffer_size is not None:
        raise SimulationConfigError("pre_aggregate and buffer_size exclude each other")
    wanted = averages(strategy) if pre_aggregate is None else pre_aggregate
    partial = privacy is not None or secure is not None or wanted
    if pace.buffer_size is not None:
        partial = False
    if isinstance(workers, str) and not partial:
        require_averaging(strategy, "Ray actors return sums only")
    norm = None if privacy is None else privacy.clipping_norm
    return Upload(partial=partial, clipping_norm=norm, secure=secure)
