"""A secure round over Flower messages: five exchanges with the cohort, and a mean of its groups.

Each group is a secure round of its own (`aggregator`); all go through a stage together. A device
that is late or wrong is lost to its group, a group that is left too small is lost to the round.
With several groups the update is the coordinate-wise median of their means: with f of n devices
malicious, a group of g is clean with (1 - f)^g, and the median holds while fewer than half of the
groups are not: 1 - (1 - f)^g < 1/2.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from rootlet.errors import RecordError
from rootlet.fleet.records import Records
from rootlet.flower import from_record_dict, to_record_dict
from rootlet.secagg.messages import MASKED, QUERY, SECURE, StageMessage, by_place
from rootlet.secagg.plan import SecurePlan
from rootlet.secagg.update import decode
from rootlet_server.errors import ReplyError
from rootlet_server.federation.events import EventLog, ReplyRefused
from rootlet_server.federation.exchange import exchange
from rootlet_server.secagg.aggregator import (
    SecureAggregator,
    SecureReplyError,
    SecureRoundFailedError,
)
from rootlet_server.secagg.settings import DistributedNoise, SecureSettings

TTL_SPARE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """What a secure round came to.

    Attributes:
        update: The mean update, or the median of the groups' means, float64 [d].
        devices: Devices whose updates are in it.
        groups: Groups that gave a sum.
        plans: Of the groups that gave one.
        bytes_up: Bytes of the masked updates.
    """

    update: npt.NDArray[np.float64]
    devices: int
    groups: int
    plans: tuple[SecurePlan, ...]
    bytes_up: int


@dataclass
class _Group:
    aggregator: SecureAggregator
    nodes: list[int]
    ids: dict[int, bytes] = field(default_factory=dict)
    failed: str = ""

    @property
    def plan(self) -> SecurePlan:
        return self.aggregator.plan

    def places(self, among: Sequence[int] | None = None) -> dict[int, int]:
        """Places by node, of all on the roster or of those at these places."""
        found = {node: self.aggregator.place(device) for node, device in self.ids.items()}
        if among is None:
            return found
        wanted = set(among)
        return {node: place for node, place in found.items() if place in wanted}


class SecureRound:
    """Runs one round.

    Args:
        grid: Flower's link to the devices.
        log: Hears which answers were refused.
        settings: How.
        round_: Its number, for the events.
        deadline_s: How long the training waits for its devices, in seconds.
        noise: The noise that devices add, or None.
        rng: Draws the groups.
    """

    def __init__(
        self,
        grid: Grid,
        log: EventLog,
        settings: SecureSettings,
        *,
        round_: int,
        deadline_s: float,
        noise: DistributedNoise | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._grid, self._log, self._settings = grid, log, settings
        self._round, self._deadline_s, self._noise = round_, deadline_s, noise
        self._rng = rng or random.SystemRandom()
        self._bytes_up = 0

    def run(
        self, request: Records, nodes: Sequence[int], *, manifest_sha256: str, values: int
    ) -> SecureSum:
        """Ask the cohort to train, and learn the sum of its updates.

        Args:
            request: The records of a train request.
            nodes: The cohort.
            manifest_sha256: The bundle.
            values: Numbers in an update.

        Raises:
            SecureRoundFailedError: No group gave a sum.
            ServeConfigError: The cohort is too small for a secure round.
        """
        groups = [
            _Group(
                SecureAggregator(
                    self._settings.plan(
                        run=f"{self._round}.{number}",
                        manifest_sha256=manifest_sha256,
                        values=values,
                        devices=len(members),
                        noise=self._noise,
                    ),
                    self._settings.keys,
                ),
                members,
            )
            for number, members in enumerate(self._split(nodes))
        ]
        self._advertise(groups)
        self._share(groups)
        self._upload(groups, request)
        self._confirm(groups)
        self._unmask(groups)
        means = []
        for group in groups:
            self._guarded(group, lambda each: means.append(self._mean(each)))
        whole = [group for group in groups if not group.failed]
        if not whole:
            raise SecureRoundFailedError("; ".join(sorted({group.failed for group in groups})))
        return SecureSum(
            update=np.median(means, axis=0) if len(means) > 1 else means[0],
            devices=sum(len(group.aggregator.live) for group in whole),
            groups=len(whole),
            plans=tuple(group.plan for group in whole),
            bytes_up=self._bytes_up,
        )

    def _split(self, nodes: Sequence[int]) -> list[list[int]]:
        """Random groups of the wanted size; what is left over makes some one larger."""
        shuffled = list(nodes)
        self._rng.shuffle(shuffled)
        size = self._settings.group_size
        count = 1 if size is None else max(1, len(shuffled) // size)
        return [sorted(shuffled[first::count]) for first in range(count)]

    # -- stages ----------------------------------------------------------------------------------

    def _advertise(self, groups: Sequence[_Group]) -> None:
        asked = {
            node: _stage(group, "advertise", {"plan": group.plan.raw})
            for group in groups
            for node in group.nodes
        }

        def take(group: _Group, node: int, reply: StageMessage) -> None:
            group.ids[node] = group.aggregator.add_advertisement(reply.values["advertisement"])

        self._exchange(groups, asked, take)
        for group in groups:
            self._guarded(group, lambda each: each.aggregator.close_roster())

    def _share(self, groups: Sequence[_Group]) -> None:
        asked = {
            node: _stage(
                group,
                "share",
                {
                    "roster": group.aggregator.roster.raw,
                    **by_place("advertisements", group.aggregator.peers(place)),
                },
            )
            for group in groups
            if not group.failed
            for node, place in group.places().items()
        }

        def take(group: _Group, node: int, reply: StageMessage) -> None:
            group.aggregator.add_shares(group.places()[node], reply.by_place("shares"))

        self._exchange(groups, asked, take)

    def _upload(self, groups: Sequence[_Group], request: Records) -> None:
        asked = {
            node: {
                **request,
                **_stage(group, "upload", by_place("shares", group.aggregator.inbox(place))),
            }
            for group in groups
            if not group.failed
            for node, place in group.places(group.aggregator.sharers).items()
        }
        self._exchange(groups, asked, self._take_upload, training=True)
        for group in groups:
            self._guarded(group, lambda each: each.aggregator.close_live())

    def _take_upload(self, group: _Group, node: int, reply: StageMessage) -> None:
        masked = reply.values[MASKED]
        group.aggregator.add_upload(group.places()[node], masked)
        self._bytes_up += masked.nbytes

    def _confirm(self, groups: Sequence[_Group]) -> None:
        asked = {
            node: _stage(group, "confirm", {"live": group.aggregator.live_bits})
            for group in groups
            if not group.failed
            for node in group.places(group.aggregator.live)
        }

        def take(group: _Group, node: int, reply: StageMessage) -> None:
            group.aggregator.add_confirmation(group.places()[node], reply.values["signature"])

        self._exchange(groups, asked, take)

    def _unmask(self, groups: Sequence[_Group]) -> None:
        asked = {
            node: _stage(
                group,
                "unmask",
                {
                    "live": group.aggregator.live_bits,
                    **by_place("signatures", group.aggregator.signatures(place)),
                },
            )
            for group in groups
            if not group.failed
            for node, place in group.places(group.aggregator.confirmed).items()
        }

        def take(group: _Group, node: int, reply: StageMessage) -> None:
            kinds, shares = reply.by_place("secrets"), reply.by_place("shares")
            found = {j: ("seed" if kinds[j] else "mask", shares[j]) for j in shares}
            group.aggregator.add_unmasking(group.places()[node], found)

        self._exchange(groups, asked, take)

    def _mean(self, group: _Group) -> npt.NDArray[np.float64]:
        total = group.aggregator.result()
        return decode(total, group.plan, len(group.aggregator.live))

    # -- messages --------------------------------------------------------------------------------

    def _exchange(
        self,
        groups: Sequence[_Group],
        asked: Mapping[int, Records],
        take: Callable[[_Group, int, StageMessage], None],
        *,
        training: bool = False,
    ) -> None:
        """Ask, and give each answer of a group that goes on to `take`."""
        of = {node: group for group in groups for node in group.nodes}
        deadline_s = self._deadline_s if training else self._settings.stage_deadline_s
        kind = MessageType.TRAIN if training else QUERY
        messages = [
            Message(
                to_record_dict(records),
                node,
                kind,
                ttl=deadline_s + TTL_SPARE_S,
                group_id=str(self._round),
            )
            for node, records in asked.items()
        ]
        for answer in exchange(self._grid, messages, deadline_s=deadline_s):
            group = of[answer.node]
            try:
                take(group, answer.node, _reply(answer.message, group.plan, asked[answer.node]))
            except (ReplyError, RecordError, SecureReplyError) as error:
                stage = str(asked[answer.node][SECURE]["stage"])
                self._log.write(
                    ReplyRefused(
                        round=self._round,
                        node=answer.node,
                        phase=f"secure {stage}",
                        reason=str(error)[:500],
                    )
                )

    def _guarded(self, group: _Group, step: Callable[[_Group], object]) -> None:
        if group.failed:
            return
        try:
            step(group)
        except SecureRoundFailedError as error:
            group.failed = str(error)


def _stage(group: _Group, stage: str, values: Mapping[str, object]) -> Records:
    round_id = "" if stage == "advertise" else group.plan.round_id
    return StageMessage(stage=stage, round_id=round_id, values=values).to_records()


def _reply(message: Message, plan: SecurePlan, asked: Records) -> StageMessage:
    """The stage's answer; of ``upload`` with the masked update among its values.

    Raises:
        ReplyError: An error of the device, other records, or an update that is too large.
        RecordError: A malformed stage.
    """
    if message.has_error():
        error = message.error
        raise ReplyError(f"the device answered with error {error.code}: {str(error.reason)[:500]}")
    arrays = message.content.array_records
    size = sum(len(array.data) for record in arrays.values() for array in record.values())
    most = plan.values * plan.modulus_bits // 8 + 16_384
    if size > most:
        raise ReplyError(f"the reply's arrays take {size} bytes; at most {most} are due")
    records = from_record_dict(message.content)
    reply = StageMessage.reply({SECURE: records.pop(SECURE, {})})
    wanted = asked[SECURE]
    if reply.stage != wanted["stage"] or wanted["round_id"] not in {"", reply.round_id}:
        raise ReplyError(f"the device answered stage {reply.stage!r} of another question")
    if reply.stage != "upload":
        if records:
            raise ReplyError(f"the reply holds {sorted(records)!r:.200} beside the stage")
        return reply
    found: Mapping[str, Any] = records.get("arrays", {})
    if set(records) != {"arrays", "metrics"} or set(found) != {MASKED}:
        raise ReplyError(f"the reply holds {sorted(records)!r:.200}; a masked update is due")
    return StageMessage(stage="upload", round_id=reply.round_id, values={MASKED: found[MASKED]})
