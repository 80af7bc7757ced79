"""The round loop: ask a cohort, collect, average with Flower's FedAvg, save, again.

One round is: wait until enough devices are online, sample the cohort, send every device the
adapter, collect the answers until all are there or the deadline passes, leave out what may not be
averaged, average, save. A device that does not answer in time costs the deadline once and nothing
else.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from rootlet.fleet.records import Records
from rootlet.flower import to_record_dict
from rootlet.protocol import EvaluateRequest, TrainRequest
from rootlet.secagg.update import flat, unflat
from rootlet_server.errors import NotEnoughDevicesError, ReplyError
from rootlet_server.federation.checkpoint import Adapter, RoundCheckpoint
from rootlet_server.federation.events import (
    Evaluated,
    EventLog,
    Reply,
    ReplyRefused,
    RoundFailed,
    RoundFinished,
    RoundStarted,
    Waiting,
)
from rootlet_server.federation.exchange import Answer, exchange
from rootlet_server.federation.feedback import FeedbackFile
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.replies import (
    FEEDBACK_VERSION,
    NUM_EXAMPLES,
    check_evaluate_reply,
    check_train_reply,
)
from rootlet_server.secagg.aggregator import SecureRoundFailedError
from rootlet_server.secagg.rounds import SecureRound

_ONLINE_POLL_S = 0.2
_MAX_FAILED_ROUNDS = 3
_SUMS = ("bytes_down", "bytes_up", "energy_estimated_j")
_NO_MEANS = (NUM_EXAMPLES, *_SUMS, FEEDBACK_VERSION)

CentralEvaluation = Callable[[Adapter], Mapping[str, float]]


@dataclass(frozen=True)
class Accepted:
    """A node's answer that may be averaged, and its metrics."""

    node: int
    message: Message
    metrics: dict[str, float]


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
        self._grid = grid
        self._plan = plan
        self._log = log
        self._central = central
        self._rng = rng or random.SystemRandom()
        self._feedback = feedback
        self._strategy = FedAvg(weighted_by_key=NUM_EXAMPLES)

    def run(self) -> RoundCheckpoint:
        """Run the rounds that are left after the saved checkpoint, then the final evaluation.

        Returns:
            The last checkpoint.

        Raises:
            NotEnoughDevicesError: too few devices came in time, or three rounds running had no
                answer that could be averaged.
            RoundCheckpointError: there is no checkpoint to start from.
        """
        plan = self._plan
        state = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
        failed = 0
        while state.round < plan.rounds:
            after = self._train_round(state)
            failed = failed + 1 if after is None else 0
            if failed == _MAX_FAILED_ROUNDS:
                raise NotEnoughDevicesError(
                    f"round {state.round + 1}: no device gave an update that could be averaged in "
                    f"{failed} attempts; {plan.events_path} holds the reasons"
                )
            state = after or state
        self._evaluate(state)
        return state

    def _train_round(self, before: RoundCheckpoint) -> RoundCheckpoint | None:
        """One round; None if no answer could be averaged."""
        plan, round_ = self._plan, before.round + 1
        cohort = self._cohort()
        start = time.monotonic()
        self._log.write(RoundStarted(round=round_, cohort=cohort))
        request = TrainRequest(
            adapter=before.adapter,
            bundle=plan.bundle,
            bundle_version=plan.bundle_version,
            manifest_sha256=plan.manifest_sha256,
            round=round_,
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
        )
        if plan.secure is not None:
            return self._secure_round(before, request, cohort, start)
        accepted = self._collect(
            MessageType.TRAIN,
            round_,
            self._requests(request, cohort),
            lambda message: check_train_reply(
                message,
                received=before.adapter,
                metric=plan.metric,
                max_examples=plan.max_examples,
            ),
        )
        if self._feedback is not None:
            for item in accepted:
                self._feedback.heard(item.node, item.metrics)
        if not accepted:
            return None
        after = RoundCheckpoint(
            manifest_sha256=plan.manifest_sha256,
            round=round_,
            adapter=self._average(round_, accepted),
        )
        after.save(plan.checkpoint_path)
        self._log.write(self._summary(after, accepted, len(cohort), time.monotonic() - start))
        return after

    def _secure_round(
        self, before: RoundCheckpoint, request: TrainRequest, cohort: Sequence[int], start: float
    ) -> RoundCheckpoint | None:
        """One round by secure aggregation; None if no group gave a sum."""
        plan = self._plan
        if plan.secure is None:
            raise AssertionError("unreachable: a secure round has settings")
        secure = SecureRound(
            self._grid,
            self._log,
            plan.secure,
            round_=request.round,
            deadline_s=plan.deadline_s,
        )
        try:
            found = secure.run(
                request.to_records(),
                cohort,
                manifest_sha256=plan.manifest_sha256,
                values=sum(array.size for array in before.adapter.values()),
            )
        except SecureRoundFailedError as error:
            self._log.write(RoundFailed(round=request.round, reason=str(error)))
            return None
        moved = unflat(flat(before.adapter) + found.update, before.adapter)
        after = replace(before, round=request.round, adapter=moved)
        after.save(plan.checkpoint_path)
        self._log.write(
            RoundFinished(
                round=after.round,
                devices=found.devices,
                asked=len(cohort),
                seconds=time.monotonic() - start,
                means={},
                bytes_down=0,
                bytes_up=found.bytes_up,
                train_s=0.0,
                energy_estimated_j=0.0,
                central=self._central(after.adapter) if self._central else None,
                protection=f"secure aggregation, {found.groups} "
                f"{'sum' if found.groups == 1 else 'sums'} of {found.devices} devices",
            )
        )
        return after

    def _evaluate(self, state: RoundCheckpoint) -> None:
        plan = self._plan
        # Devices' figures would leave them in clear.
        nodes = sorted(self._grid.get_node_ids()) if plan.secure is None else []
        request = EvaluateRequest(
            adapter=state.adapter,
            bundle=plan.bundle,
            bundle_version=plan.bundle_version,
            manifest_sha256=plan.manifest_sha256,
            round=state.round,
        )
        accepted = self._collect(
            MessageType.EVALUATE,
            state.round,
            self._messages(request.to_records(), nodes, MessageType.EVALUATE, state.round),
            lambda message: check_evaluate_reply(
                message, metric=plan.metric, max_examples=plan.max_examples
            ),
        )
        self._log.write(
            Evaluated(
                round=state.round,
                devices=len(accepted),
                means=weighted_means([item.metrics for item in accepted]),
                central=self._central(state.adapter) if self._central else None,
            )
        )

    def _cohort(self) -> list[int]:
        """Wait until enough devices are online, then sample."""
        plan = self._plan
        give_up = time.monotonic() + plan.wait_s
        shown = -1
        while len(online := sorted(self._grid.get_node_ids())) < plan.min_devices:
            if len(online) != shown:
                shown = len(online)
                self._log.write(Waiting(online=shown, needed=plan.min_devices))
            if time.monotonic() >= give_up:
                raise NotEnoughDevicesError(
                    f"{len(online)} devices are online after {plan.wait_s:g} s, and a round needs "
                    f"{plan.min_devices}; start more devices, or lower --min-devices"
                )
            time.sleep(_ONLINE_POLL_S)
        size = min(len(online), plan.cohort_size or len(online))
        return sorted(self._rng.sample(online, size))

    def _requests(self, request: TrainRequest, cohort: Sequence[int]) -> list[Message]:
        """The round's requests; with the feedback part for those who may lack it."""
        source = self._feedback
        part = b"" if source is None else source.for_round(request.round)
        lacking = [node for node in cohort if part and source is not None and source.lacks(node)]
        others = [node for node in cohort if node not in lacking]
        with_part = replace(request, feedback=part) if lacking else request
        return [
            message
            for asked, nodes in ((with_part, lacking), (request, others))
            if nodes
            for message in self._messages(
                asked.to_records(), nodes, MessageType.TRAIN, request.round
            )
        ]

    def _messages(
        self, records: Records, nodes: Sequence[int], kind: str, round_: int
    ) -> list[Message]:
        content = to_record_dict(records)
        return [
            Message(content, node, kind, ttl=self._plan.deadline_s + 60.0, group_id=str(round_))
            for node in nodes
        ]

    def _collect(
        self,
        phase: str,
        round_: int,
        messages: Sequence[Message],
        check: Callable[[Message], dict[str, float]],
    ) -> list[Accepted]:
        accepted: list[Accepted] = []
        for answer in exchange(self._grid, messages, deadline_s=self._plan.deadline_s):
            try:
                metrics = check(answer.message)
            except ReplyError as error:
                self._log.write(
                    ReplyRefused(round=round_, node=answer.node, phase=phase, reason=str(error))
                )
                continue
            accepted.append(Accepted(answer.node, answer.message, metrics))
            self._log.write(_reply_event(round_, phase, answer, metrics))
        return accepted

    def _average(self, round_: int, accepted: Sequence[Accepted]) -> Adapter:
        """Flower's FedAvg over the accepted answers, weighted by their numbers of examples."""
        arrays, _ = self._strategy.aggregate_train(round_, [item.message for item in accepted])
        if arrays is None:
            raise NotEnoughDevicesError(f"round {round_}: FedAvg was given nothing to average")
        return {name: array.numpy() for name, array in arrays.items()}

    def _summary(
        self, after: RoundCheckpoint, accepted: Sequence[Accepted], asked: int, seconds: float
    ) -> RoundFinished:
        metrics = [item.metrics for item in accepted]
        return RoundFinished(
            round=after.round,
            devices=len(accepted),
            asked=asked,
            seconds=seconds,
            means=weighted_means(metrics),
            bytes_down=int(sum(item["bytes_down"] for item in metrics)),
            bytes_up=int(sum(item["bytes_up"] for item in metrics)),
            train_s=max(item["train_s"] for item in metrics),
            energy_estimated_j=sum(item["energy_estimated_j"] for item in metrics),
            central=self._central(after.adapter) if self._central else None,
        )


def weighted_means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric, weighted by the numbers of examples; sums and weights are left out."""
    total = sum(item[NUM_EXAMPLES] for item in metrics)
    names = [name for name in (metrics[0] if metrics else ()) if name not in _NO_MEANS]
    return {
        name: sum(item[name] * item[NUM_EXAMPLES] for item in metrics) / total for name in names
    }


def _reply_event(round_: int, phase: str, answer: Answer, metrics: Mapping[str, float]) -> Reply:
    return Reply(
        round=round_, node=answer.node, phase=phase, seconds=answer.seconds, metrics=metrics
    )
