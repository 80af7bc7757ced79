"""How the answers of a round are gathered: a cohort is asked, and all wait for each other."""

import time
from dataclasses import dataclass, replace
from typing import Protocol

from rootlet_server.federation.accepted import Accepted, CentralEvaluation, Judge, weighted_means
from rootlet_server.federation.checkpoint import Adapter, RoundCheckpoint
from rootlet_server.federation.cohort import Cohorts
from rootlet_server.federation.events import EventLog, RoundFinished, RoundStarted
from rootlet_server.federation.exchange import Exchange
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.requests import SLACK_S, Requests

LATE = "it came after its round was over"


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The answers of a round.

    Attributes:
        accepted: Those that passed.
        asked: Devices that were asked.
        seconds: From the first request to the last answer.
        devices: Devices that are in the answers.
        bytes_up: Bytes that they sent.
        protection: How they are protected; then no answer tells of a device.
        epsilon: What all rounds have spent, where they are private.
        failed: Why there is no answer, where it is known.
    """

    accepted: list[Accepted]
    asked: int
    seconds: float
    devices: int = 0
    bytes_up: int = 0
    protection: str = ""
    epsilon: float | None = None
    failed: str = ""

    @classmethod
    def of(cls, accepted: list[Accepted], *, asked: int, seconds: float) -> "Gathered":
        """One answer of each device."""
        return cls(
            accepted=accepted,
            asked=asked,
            seconds=seconds,
            devices=len(accepted),
            bytes_up=int(sum(item.metrics["bytes_up"] for item in accepted)),
        )


@dataclass(frozen=True, kw_only=True)
class Means:
    """What gathering works with."""

    plan: FederationPlan
    log: EventLog
    cohorts: Cohorts
    requests: Requests
    judge: Judge


class Gathering(Protocol):
    """Gathers the answers of one round after the other."""

    def lifetime_s(self, plan: FederationPlan) -> float:
        """How long a request may be answered at all, in seconds."""

    def gather(self, exchange: Exchange, before: RoundCheckpoint) -> Gathered:
        """The answers from which the round after `before` is made.

        Raises:
            NotEnoughDevicesError: too few devices were online in time.
        """


class WholeRounds:
    """Asks a cohort and takes the first answers that are wanted, until the deadline.

    A device that is still at an earlier round is asked only where the others do not suffice.
    """

    def __init__(self, means: Means) -> None:
        self._means = means

    def lifetime_s(self, plan: FederationPlan) -> float:
        """How long a request may be answered at all: late answers are told of, not used."""
        return plan.deadline_s + SLACK_S

    def gather(self, exchange: Exchange, before: RoundCheckpoint) -> Gathered:
        """One cohort's answers."""
        means, plan, round_ = self._means, self._means.plan, before.round + 1
        for answer in exchange.arrived():
            means.judge.refuse(answer, LATE)
        cohort = means.cohorts.draw(exchange.busy)
        start = time.monotonic()
        means.log.write(RoundStarted(round=round_, cohort=cohort))
        ticket = exchange.ask(round_, means.requests.train(round_, before.adapter, cohort))
        wanted = min(len(cohort), plan.cohort_size or len(cohort))
        accepted = self._collect(exchange, ticket, wanted, before.adapter)
        return Gathered.of(accepted, asked=len(cohort), seconds=time.monotonic() - start)

    def _collect(
        self, exchange: Exchange, ticket: int, wanted: int, received: Adapter
    ) -> list[Accepted]:
        """The first `wanted` answers to a ticket that pass."""
        accepted: list[Accepted] = []
        judge = self._means.judge
        for answers in exchange.answers(ticket, deadline_s=self._means.plan.deadline_s):
            for answer in answers:
                if answer.ticket != ticket:
                    judge.refuse(answer, LATE)
                elif len(accepted) == wanted:
                    judge.refuse(answer, f"the round has its {wanted} answers")
                elif (found := judge.trained(answer, received)) is not None:
                    accepted.append(found)
            if len(accepted) == wanted:
                break
        return accepted


def summary(
    after: RoundCheckpoint, gathered: Gathered, *, central: CentralEvaluation | None
) -> RoundFinished:
    """What a round came to; of a protected one no figure that a device alone could tell."""
    found = RoundFinished(
        round=after.round,
        devices=gathered.devices,
        asked=gathered.asked,
        seconds=gathered.seconds,
        means={},
        bytes_down=0,
        bytes_up=gathered.bytes_up,
        train_s=0.0,
        energy_estimated_j=0.0,
        central=central(after.adapter) if central else None,
        protection=gathered.protection,
        epsilon=gathered.epsilon,
    )
    if gathered.protection:
        return found
    metrics = [item.metrics for item in gathered.accepted]
    return replace(
        found,
        means=weighted_means(metrics),
        bytes_down=int(sum(item["bytes_down"] for item in metrics)),
        train_s=max(item["train_s"] for item in metrics),
        energy_estimated_j=sum(item["energy_estimated_j"] for item in metrics),
    )
