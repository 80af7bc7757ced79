"""Answers that passed, and what they come to."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import MessageType

from rootlet_server.errors import ReplyError
from rootlet_server.federation.checkpoint import Adapter
from rootlet_server.federation.events import EventLog, Reply, ReplyRefused
from rootlet_server.federation.exchange import Answer
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.replies import (
    FEEDBACK_VERSION,
    NUM_EXAMPLES,
    check_evaluate_reply,
    check_private_reply,
    check_train_reply,
)
from rootlet_server.federation.strategies import CONTROLLED, Update

_SUMS = ("bytes_down", "bytes_up", "energy_estimated_j")
_NO_MEANS = (NUM_EXAMPLES, *_SUMS, FEEDBACK_VERSION)

CentralEvaluation = Callable[[Adapter], Mapping[str, float]]


@dataclass(frozen=True)
class Accepted:
    """A device's metrics, and its update where it trained."""

    node: int
    metrics: dict[str, float]
    update: Update | None = None


class Judge:
    """Checks answers by a plan and tells the log of each.

    Args:
        plan: What was asked for.
        log: Hears of every answer.
    """

    def __init__(self, plan: FederationPlan, log: EventLog) -> None:
        self._plan = plan
        self._log = log

    def trained(self, answer: Answer, received: Adapter, *, staleness: int = 0) -> Accepted | None:
        """The update in an answer to the adapter `received`; None, and the reason in the log."""
        plan = self._plan
        try:
            if plan.privacy is not None:
                metrics, adapter = check_private_reply(answer.message, received=received)
                control = None
            else:
                metrics, adapter, control = check_train_reply(
                    answer.message,
                    received=received,
                    metric=plan.metric,
                    max_examples=plan.max_examples,
                    compression=plan.smaller,
                    controlled=plan.strategy == CONTROLLED,
                )
            self._check_length(received, adapter)
        except ReplyError as error:
            self.refuse(answer, str(error))
            return None
        self._tell(answer, MessageType.TRAIN, metrics, staleness)
        update = Update(
            node=answer.node,
            received=received,
            trained=adapter,
            num_examples=int(metrics.get(NUM_EXAMPLES, 1)),
            loss=metrics.get("loss", 0.0),
            staleness=staleness,
            control=control,
        )
        return Accepted(answer.node, metrics, update)

    def evaluated(self, answer: Answer) -> Accepted | None:
        """The metrics in an answer; None, and the reason in the log."""
        plan = self._plan
        try:
            metrics = check_evaluate_reply(
                answer.message, metric=plan.metric, max_examples=plan.max_examples
            )
        except ReplyError as error:
            self.refuse(answer, str(error), phase=MessageType.EVALUATE)
            return None
        self._tell(answer, MessageType.EVALUATE, metrics)
        return Accepted(answer.node, metrics)

    def _check_length(self, received: Adapter, adapter: Adapter) -> None:
        """Refuse an absurd update; a plausible one that is false needs a robust strategy."""
        most = self._plan.max_update_norm
        squares = sum(
            float(np.sum((adapter[name].astype(np.float64) - array) ** 2))
            for name, array in received.items()
        )
        if (length := math.sqrt(squares)) > most:
            raise ReplyError(
                f"the update is {length:.4g} long; at most {most:g} is taken (--max-update-norm)"
            )

    def refuse(self, answer: Answer, reason: str, *, phase: str = MessageType.TRAIN) -> None:
        """Tell the log why an answer is left out."""
        self._log.write(
            ReplyRefused(round=answer.round, node=answer.node, phase=phase, reason=reason)
        )

    def _tell(
        self, answer: Answer, phase: str, metrics: Mapping[str, float], staleness: int = 0
    ) -> None:
        self._log.write(
            Reply(
                round=answer.round,
                node=answer.node,
                phase=phase,
                seconds=answer.seconds,
                metrics=metrics,
                staleness=staleness,
            )
        )


def weighted_means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric, weighted by the numbers of examples; sums and weights are left out."""
    total = sum(item[NUM_EXAMPLES] for item in metrics)
    names = [name for name in (metrics[0] if metrics else ()) if name not in _NO_MEANS]
    return {
        name: sum(item[name] * item[NUM_EXAMPLES] for item in metrics) / total for name in names
    }
