"""A device's part in secure rounds: it answers their stages, one round or group after another."""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rootlet.errors import RecordError
from rootlet.fleet.envelope import Answer
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord
from rootlet.secagg.device import DeviceRound
from rootlet.secagg.enrolment import EnrolmentFolder, Identity
from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.messages import MASKED, SECURE, StageMessage, by_place
from rootlet.secagg.plan import SecurePlan
from rootlet.secagg.policy import SecurePolicy
from rootlet.secagg.roster import Advertisement, Roster
from rootlet.secagg.update import encode
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.durable import write_atomically

OPEN_ROUNDS = 4
"""Rounds that may be under way; the oldest is given up for a fifth."""
REMEMBERED_ROUNDS = 4096
_ROUND_ID = re.compile(r"[0-9a-f]{32}")


class UsedRounds:
    """The ids of the rounds that a device began, also before a restart: none is begun twice.

    Args:
        path: A line an id; None to forget when the process ends.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._used: OrderedDict[str, None] = OrderedDict()
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._used.update(dict.fromkeys(path.read_text().split()))

    def use(self, round_id: str) -> None:
        """Note a round that begins.

        Raises:
            SecureRoundRefusedError: It began before.
        """
        if round_id in self._used:
            raise SecureRoundRefusedError(f"round {round_id[:8]}… was begun before")
        self._used[round_id] = None
        while len(self._used) > REMEMBERED_ROUNDS:
            self._used.popitem(last=False)
        if self._path is not None:
            write_atomically(self._path, "\n".join(self._used).encode())


class SecureParticipation:
    """Answers the stages of secure rounds.

    Args:
        identity: Who the device is.
        policy: What it insists on.
        manifest_sha256: The bundle that it trains.
        values: Numbers in an update of it.
        used: Remembers round ids.
    """

    def __init__(
        self,
        identity: Identity,
        policy: SecurePolicy,
        *,
        manifest_sha256: str,
        values: int,
        used: UsedRounds,
    ) -> None:
        self.policy = policy
        self._identity = identity
        self._manifest_sha256, self._values = manifest_sha256, values
        self._used = used
        self._rounds: OrderedDict[str, DeviceRound] = OrderedDict()

    @classmethod
    def open(
        cls, folder: Path, policy: SecurePolicy, bundle: Bundle
    ) -> "SecureParticipation | None":
        """The part of the device that is enrolled in a folder; None where none is.

        Raises:
            EnrolmentError: The enrolment is damaged or has expired.
        """
        identity = EnrolmentFolder(folder).load()
        if identity is None:
            return None
        return cls(
            identity,
            policy,
            manifest_sha256=bundle.manifest_sha256,
            values=sum(spec.elements for spec in bundle.manifest.adapter),
            used=UsedRounds(folder / "rounds"),
        )

    def answer(self, message: StageMessage) -> Answer:
        """The answer to any stage but ``upload``.

        Raises:
            SecureRoundRefusedError: The round is refused, or over for this device.
            RecordError: Malformed.
        """
        stages: dict[str, Callable[[StageMessage], dict[str, object]]] = {
            "advertise": self._advertise,
            "share": self._share,
            "confirm": self._confirm,
            "unmask": self._unmask,
        }
        if message.stage not in stages:
            raise SecureRoundRefusedError(f"stage {message.stage!r} comes with a train request")
        try:
            values = stages[message.stage](message)
        except (SecureRoundRefusedError, RecordError):
            self._rounds.pop(message.round_id, None)  # whatever was wrong, it ends here
            raise
        round_id = message.round_id or next(reversed(self._rounds))
        reply = StageMessage(stage=message.stage, round_id=round_id, values=values)
        return Answer(reply.to_records())

    def to_records(self) -> dict[str, ConfigRecord]:
        """The rounds under way by their ids, secrets included, for `resume`."""
        return {round_id: each.to_record() for round_id, each in self._rounds.items()}

    def resume(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up the rounds that `to_records` kept."""
        for round_id, record in records.items():
            self._rounds[round_id] = DeviceRound.from_record(self._identity, record)

    def plan(self, message: StageMessage) -> SecurePlan:
        """The plan of a round under way."""
        return self._round(message).plan

    def upload(self, message: StageMessage, update: npt.NDArray[np.float32]) -> Answer:
        """The masked update, and nothing that tells of it: no loss, no count, no time.

        Raises:
            SecureRoundRefusedError: The round is over for this device.
        """
        current = self._round(message)
        masked = current.upload(message.by_place("shares"), encode(update, current.plan))
        reply = StageMessage(stage="upload", round_id=message.round_id, values={})
        return Answer(
            {
                "arrays": ArrayRecord({MASKED: masked}),
                "metrics": MetricRecord({"bytes_up": masked.nbytes}),
                SECURE: reply.to_records()[SECURE],
            }
        )

    def _advertise(self, message: StageMessage) -> dict[str, object]:
        plan = SecurePlan.parse(message.values["plan"])
        self.policy.check(plan, manifest_sha256=self._manifest_sha256, values=self._values)
        self._used.use(plan.round_id)
        self._rounds[plan.round_id] = begun = DeviceRound(self._identity, plan)
        while len(self._rounds) > OPEN_ROUNDS:
            self._rounds.popitem(last=False)
        return {"advertisement": begun.advertise().raw}

    def _share(self, message: StageMessage) -> dict[str, object]:
        current = self._round(message)
        roster = Roster.parse(current.plan, message.values["roster"])
        peers = {
            place: Advertisement.parse(raw)
            for place, raw in message.by_place("advertisements").items()
        }
        return by_place("shares", current.share(roster, peers))  # type: ignore[return-value]

    def _confirm(self, message: StageMessage) -> dict[str, object]:
        return {"signature": self._round(message).confirm(message.values["live"])}

    def _unmask(self, message: StageMessage) -> dict[str, object]:
        current = self._round(message)
        found = current.unmask(message.values["live"], message.by_place("signatures"))
        del self._rounds[message.round_id]
        places = sorted(found)
        return {
            "places": places,
            "secrets": [found[place][0] == "seed" for place in places],
            "shares": [found[place][1] for place in places],
        }

    def _round(self, message: StageMessage) -> DeviceRound:
        if not _ROUND_ID.fullmatch(message.round_id) or message.round_id not in self._rounds:
            raise SecureRoundRefusedError(
                f"round {message.round_id:.8}… is not under way here: this device has restarted, "
                "or never began it"
            )
        return self._rounds[message.round_id]
