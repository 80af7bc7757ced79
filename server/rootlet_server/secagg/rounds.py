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

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from rootlet.errors import RecordError
from rootlet.fleet.records import Records
from rootlet.flower import to_record_dict
from rootlet.protocol import TrainRequest
from rootlet.secagg.messages import MASKED, QUERY, SECURE, StageMessage, by_place
from rootlet.secagg.plan import SecurePlan
from rootlet.secagg.update import decode, flat, unflat
from rootlet_server.errors import ReplyError
from rootlet_server.federation.checkpoint import Adapter
from rootlet_server.federation.events import EventLog, ReplyRefused
from rootlet_server.federation.exchange import Exchange
from rootlet_server.federation.strategies import Update
from rootlet_server.secagg.aggregator import (
    SecureAggregator,
    SecureReplyError,
    SecureRoundFailedError,
)
from rootlet_server.secagg.replies import stage_reply
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

    def as_update(self, received: Adapter) -> Update:
        """The mean as the one answer that a strategy gets."""
        moved = unflat(flat(received) + self.update, received)
        return Update(node=0, received=received, trained=moved, num_examples=1, loss=0.0)


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
        self, request: TrainRequest, nodes: Sequence[int], terms: Records | None = None
    ) -> SecureSum:
        """Ask the cohort to train, and learn the sum of its updates.

        Args:
            request: What it is asked.
            nodes: The cohort.
            terms: Further records of the request.

        Raises:
            SecureRoundFailedError: No group gave a sum.
            ServeConfigError: The cohort is too small for a secure round.
        """
        values = sum(array.size for array in request.adapter.values())
        groups = [
            _Group(
                SecureAggregator(
                    self._settings.plan(
                        run=f"{self._round}.{number}",
                        manifest_sha256=request.manifest_sha256,
                        values=values,
                        devices=len(members),
                        noise=self._noise,
                    ),
                    self._settings.keys,
                ),
                members,
            )
            for number, members in enumerate(self.split(nodes))
        ]
        self._advertise(groups)
        self._share(groups)
        self._upload(groups, {**request.to_records(), **(terms or {})})
        self._confirm(groups)
        self._unmask(groups)
        means = []
        for group in groups:
            self._guarded(group, lambda each: means.append(self._mean(each)))
        whole = [group for group in groups if not group.failed]
        if not whole:
            raise SecureRoundFailedError("; ".join(sorted({group.failed for group in groups})))
        return SecureSum(
            update=combined(means),
            devices=sum(len(group.aggregator.live) for group in whole),
            groups=len(whole),
            plans=tuple(group.plan for group in whole),
            bytes_up=self._bytes_up,
        )

    def split(self, nodes: Sequence[int]) -> list[list[int]]:
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
        exchange = Exchange(self._grid, lifetime_s=deadline_s + TTL_SPARE_S)
        looks = exchange.answers(exchange.ask(self._round, messages), deadline_s=deadline_s)
        for answer in (each for look in looks for each in look):
            group, node = of[answer.node], answer.node
            try:
                take(group, node, stage_reply(answer.message, group.plan, asked[node]))
            except (ReplyError, RecordError, SecureReplyError) as error:
                phase = f"secure {asked[node][SECURE]['stage']!s}"
                reason = str(error)[:500]
                self._log.write(
                    ReplyRefused(round=self._round, node=node, phase=phase, reason=reason)
                )

    def _guarded(self, group: _Group, step: Callable[[_Group], object]) -> None:
        if group.failed:
            return
        try:
            step(group)
        except SecureRoundFailedError as error:
            group.failed = str(error)


def combined(means: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """One group's mean, or the coordinate-wise median of the means of several."""
    found: npt.NDArray[np.float64] = means[0] if len(means) == 1 else np.median(means, axis=0)
    return found


def _stage(group: _Group, stage: str, values: Mapping[str, object]) -> Records:
    round_id = "" if stage == "advertise" else group.plan.round_id
    return StageMessage(stage=stage, round_id=round_id, values=values).to_records()
