"""What devices are asked: the plan and the adapter as messages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message, MessageType

from rootlet.fleet.records import Records
from rootlet.flower import to_record_dict
from rootlet.protocol import EvaluateRequest, TrainRequest
from rootlet_server.federation.checkpoint import Adapter
from rootlet_server.federation.feedback import FeedbackFile
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.strategies import CONTROLLED

SLACK_S = 60.0
"""How much longer than a round's deadline a request lives, in seconds."""


class Requests:
    """Makes the messages of a plan.

    Args:
        plan: What to ask for.
        options: Asked in each round for what the strategy tells devices beside it.
        feedback: A refreshed feedback for those who lack it, or None.
    """

    def __init__(
        self,
        plan: FederationPlan,
        options: Callable[[], Mapping[str, Any]],
        feedback: FeedbackFile | None,
    ) -> None:
        self._plan = plan
        self._options = options
        self._feedback = feedback

    def train(self, round_: int, adapter: Adapter, nodes: Sequence[int]) -> list[Message]:
        """A round's requests; with the feedback part for those who may lack it."""
        source, request = self._feedback, self.train_request(round_, adapter)
        part = b"" if source is None else source.for_round(round_)
        lacking = [node for node in nodes if part and source is not None and source.lacks(node)]
        others = [node for node in nodes if node not in lacking]
        with_part = replace(request, feedback=part) if lacking else request
        return [
            message
            for asked, chosen in ((with_part, lacking), (request, others))
            if chosen
            for message in self._messages(
                {**asked.to_records(), **self.terms()}, chosen, MessageType.TRAIN, round_
            )
        ]

    def terms(self) -> Records:
        """The privacy that devices are asked for beside a request; nothing where it is none."""
        return {} if self._plan.privacy is None else self._plan.privacy.terms.to_records()

    def train_request(self, round_: int, adapter: Adapter) -> TrainRequest:
        """A round's request, without a feedback part."""
        plan, options = self._plan, dict(self._options())
        if plan.strategy == CONTROLLED:
            zero = {name: np.zeros_like(value) for name, value in adapter.items()}
            options["control"] = options["control"] or zero
        return TrainRequest(
            adapter=adapter,
            bundle=plan.bundle,
            bundle_version=plan.bundle_version,
            manifest_sha256=plan.manifest_sha256,
            round=round_,
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            compression=plan.smaller,
            **options,
        )

    def evaluate(self, round_: int, adapter: Adapter, nodes: Sequence[int]) -> list[Message]:
        """The requests to measure an adapter."""
        plan = self._plan
        request = EvaluateRequest(
            adapter=adapter,
            bundle=plan.bundle,
            bundle_version=plan.bundle_version,
            manifest_sha256=plan.manifest_sha256,
            round=round_,
        )
        return self._messages(request.to_records(), nodes, MessageType.EVALUATE, round_)

    def _messages(
        self, records: Records, nodes: Sequence[int], kind: str, round_: int
    ) -> list[Message]:
        content = to_record_dict(records)
        lifetime_s = self._plan.deadline_s + SLACK_S
        return [
            Message(content, node, kind, ttl=lifetime_s, group_id=str(round_)) for node in nodes
        ]
