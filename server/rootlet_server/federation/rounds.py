"""The round loop: gather answers, let the strategy make the next adapter, save, again.

One round is: wait until enough devices are online, sample the cohort, send every device the
adapter, collect the answers until all that are wanted are there or the deadline passes, leave out
what may not be aggregated, aggregate, save. A device that does not answer in time costs the
deadline once and nothing else. A round with too few answers is repeated. Where the strategy
buffers, devices do not wait for each other, and a round is one full buffer.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from rootlet_server.errors import AggregationError, NotEnoughDevicesError
from rootlet_server.federation.accepted import (
    Accepted,
    CentralEvaluation,
    Judge,
    weighted_means,
)
from rootlet_server.federation.buffered import BufferedRounds
from rootlet_server.federation.checkpoint import Adapter, RoundCheckpoint
from rootlet_server.federation.cohort import Cohorts
from rootlet_server.federation.events import BudgetSpent, Evaluated, EventLog, RoundRepeated
from rootlet_server.federation.exchange import Exchange
from rootlet_server.federation.feedback import FeedbackFile
from rootlet_server.federation.gathering import Gathering, Means, WholeRounds, summary
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.privacy import BudgetSpentError, FederationAccount
from rootlet_server.federation.private_rounds import PrivateRounds
from rootlet_server.federation.requests import SLACK_S, Requests
from rootlet_server.federation.secure_rounds import SecureRounds
from rootlet_server.federation.strategies import Buffering, make_settings

MAX_FAILED_ROUNDS = 3
"""Attempts at one round after which the run ends."""


class RoundLoop:
    """Runs the rounds of a plan.

    Args:
        grid: Flower's link to the devices.
        plan: What to run.
        log: Receives the events.
        central: Evaluates an adapter on the server's own data, or None.
        rng: Draws the cohorts; the operating system's by default, so that no device can foresee
            them.
        feedback: A refreshed feedback for those who lack it, or None.
    """

    def __init__(
        self,
        grid: Grid,
        plan: FederationPlan,
        log: EventLog,
        *,
        central: CentralEvaluation | None = None,
        rng: random.Random | None = None,
        feedback: FeedbackFile | None = None,
    ) -> None:
        settings = make_settings(plan.strategy, plan.strategy_options)
        self._grid = grid
        self._plan = plan
        self._log = log
        self._central = central
        self._feedback = feedback
        self._strategy = settings.start(learning_rate=plan.learning_rate)
        self._least = max(plan.min_replies, settings.least)
        self._cohorts = Cohorts(grid, plan, log, rng)
        self._requests = Requests(plan, lambda: self._strategy.train_options, feedback)
        self._judge = Judge(plan, log)
        means = Means(
            plan=plan, log=log, cohorts=self._cohorts, requests=self._requests, judge=self._judge
        )
        self._account = FederationAccount(plan.checkpoint_path.parent, plan.privacy)
        self._gathering = _gathering(grid, means, settings.buffering, self._account)
        self._exchange = Exchange(grid, lifetime_s=self._gathering.lifetime_s(plan))

    def run(self) -> RoundCheckpoint:
        """Run the rounds that are left after the saved checkpoint, then the final evaluation.

        Returns:
            The last checkpoint.

        Raises:
            NotEnoughDevicesError: too few devices came in time, or three attempts at one round
                had too few answers that could be aggregated.
            RoundCheckpointError: there is no checkpoint to start from, or another strategy's.
        """
        plan = self._plan
        state = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
        state.require_strategy(plan.strategy, plan.checkpoint_path)
        self._strategy.restore(state.strategy_state, state.adapter)
        self._account.reconcile(state.round, state.adapter)
        failed = 0
        while state.round < plan.rounds:
            try:
                after = self._train_round(state)
            except BudgetSpentError as error:
                self._log.write(BudgetSpent(round=state.round, reason=str(error)))
                break
            failed = failed + 1 if after is None else 0
            if failed == MAX_FAILED_ROUNDS:
                raise NotEnoughDevicesError(
                    f"round {state.round + 1}: too few updates that could be aggregated in "
                    f"{failed} attempts, each of which needs {self._least}; {plan.events_path} "
                    "holds the reasons"
                )
            state = after or state
        self._evaluate(state)
        return state

    def _train_round(self, before: RoundCheckpoint) -> RoundCheckpoint | None:
        """One round; None if there were too few answers, or no adapter could be made of them."""
        gathered = self._gathering.gather(self._exchange, before)
        accepted = gathered.accepted
        if self._feedback is not None:
            for item in accepted:
                self._feedback.heard(item.node, item.metrics)
        if len(accepted) < self._least:
            told = f"{len(accepted)} of {self._least} answers that a round needs"
            reason = gathered.failed or told
            self._log.write(RoundRepeated(round=before.round + 1, reason=reason))
            return None
        adapter = self._aggregate(before.round + 1, before, accepted)
        if adapter is None:
            return None
        after = before.next(adapter, self._strategy.state(), self._plan.strategy)
        after.save(self._plan.checkpoint_path)
        self._account.release(
            after.round, adapter, gathered.devices, protection=gathered.protection
        )
        self._log.write(summary(after, gathered, central=self._central))
        return after

    def _aggregate(
        self, round_: int, before: RoundCheckpoint, accepted: list[Accepted]
    ) -> Adapter | None:
        """The strategy's adapter; None, and the strategy as it was, where it cannot be used."""
        updates = [item.update for item in accepted if item.update is not None]
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                adapter = self._strategy.aggregate(round_, before.adapter, updates)
            require_finite(adapter)
            require_finite(self._strategy.state())
        except AggregationError as error:
            self._log.write(RoundRepeated(round=round_, reason=str(error)))
            settings = make_settings(self._plan.strategy, self._plan.strategy_options)
            self._strategy = settings.start(learning_rate=self._plan.learning_rate)
            self._strategy.restore(before.strategy_state, before.adapter)
            return None
        return adapter

    def _evaluate(self, state: RoundCheckpoint) -> None:
        """The devices measure the last adapter, unless their figures are not to leave them."""
        protected = self._plan.secure is not None or self._plan.privacy is not None
        nodes = [] if protected else self._cohorts.online()
        exchange = Exchange(self._grid, lifetime_s=self._plan.deadline_s + SLACK_S)
        messages = self._requests.evaluate(state.round, state.adapter, nodes)
        looks = exchange.answers(
            exchange.ask(state.round, messages), deadline_s=self._plan.deadline_s
        )
        judged = [self._judge.evaluated(answer) for answers in looks for answer in answers]
        accepted = [item for item in judged if item is not None]
        self._log.write(
            Evaluated(
                round=state.round,
                devices=len(accepted),
                means=weighted_means([item.metrics for item in accepted]),
                central=self._central(state.adapter) if self._central else None,
            )
        )


def _gathering(
    grid: Grid, means: Means, buffering: Buffering | None, account: FederationAccount
) -> Gathering:
    """How the plan gathers a round's answers."""
    plan = means.plan
    if plan.secure is not None:
        gathering: Gathering = SecureRounds(grid, means, plan.secure)
    elif buffering is not None:
        gathering = BufferedRounds(means, buffering)
    else:
        gathering = WholeRounds(means)
    return gathering if plan.privacy is None else PrivateRounds(gathering, plan, account)


def require_finite(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse an adapter, or a strategy's state, that left the finite numbers.

    Raises:
        AggregationError: names the tensor.
    """
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise AggregationError(
                f"the aggregated {name} holds a value that is not finite; an answer may be "
                "extreme: leave out the device, or take a robust strategy (--strategy fedmedian)"
            )
