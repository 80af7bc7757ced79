"""Rounds by secure aggregation: a cohort is asked, and the server sees its sum."""

import time

from flwr.serverapp import Grid

from rootlet_server.federation.accepted import Accepted
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.events import RoundStarted
from rootlet_server.federation.exchange import Exchange
from rootlet_server.federation.gathering import LATE, Gathered, Means
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.requests import SLACK_S
from rootlet_server.secagg.aggregator import SecureRoundFailedError
from rootlet_server.secagg.rounds import SecureRound
from rootlet_server.secagg.settings import SecureSettings


class SecureRounds:
    """Gathers one answer a round: the mean of the cohort's updates.

    Args:
        grid: Flower's link to the devices.
        means: What gathering works with.
        settings: How the rounds are secured.
    """

    def __init__(self, grid: Grid, means: Means, settings: SecureSettings) -> None:
        self._grid, self._means, self._settings = grid, means, settings

    def lifetime_s(self, plan: FederationPlan) -> float:
        """How long a request may be answered at all, in seconds."""
        return plan.deadline_s + SLACK_S

    def gather(self, exchange: Exchange, before: RoundCheckpoint) -> Gathered:
        """One secure round; its failure is told, and gives no answer."""
        means, plan, round_ = self._means, self._means.plan, before.round + 1
        for answer in exchange.arrived():
            means.judge.refuse(answer, LATE)
        cohort = means.cohorts.draw(exchange.busy)
        start = time.monotonic()
        means.log.write(RoundStarted(round=round_, cohort=cohort))
        noise = None if plan.privacy is None else plan.privacy.distributed
        secure = SecureRound(
            self._grid,
            means.log,
            self._settings,
            round_=round_,
            deadline_s=plan.deadline_s,
            noise=noise,
        )
        request = means.requests.train_request(round_, before.adapter)
        terms = {} if noise is not None else means.requests.terms()
        try:
            found = secure.run(request, cohort, terms)
        except SecureRoundFailedError as error:
            seconds = time.monotonic() - start
            return Gathered(accepted=[], asked=len(cohort), seconds=seconds, failed=str(error))
        accepted = Accepted(0, {}, found.as_update(before.adapter))
        sums = "one sum" if found.groups == 1 else f"{found.groups} sums"
        return Gathered(
            accepted=[accepted],
            asked=len(cohort),
            seconds=time.monotonic() - start,
            devices=found.devices,
            bytes_up=found.bytes_up,
            protection=f"secure aggregation, {sums} of {found.devices} devices",
        )
