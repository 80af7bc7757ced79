"""What the stages of a secure round say, as records of Flower messages.

Every message has the record ``secure`` (ConfigRecord) with ``protocol`` 1, ``stage`` and, but for
the first, ``round_id``. `docs/architecture.md`, contract 3, has the table. The stage ``upload``
travels with a ``train`` request, the others as ``query`` messages. Sets by place are two lists of
one length: ``places`` and the values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rootlet.errors import RecordError
from rootlet.fleet.records import ConfigRecord, Records

SECURE, QUERY, MASKED = "secure", "query", "masked"
PROTOCOL = 1
MAX_ITEMS, MAX_ITEM_BYTES = 65_536, 2**23

_ADVERTISE, _SHARE, _UPLOAD = "advertise", "share", "upload"
_CONFIRM, _UNMASK = "confirm", "unmask"
_REQUESTS: Mapping[str, Mapping[str, type]] = {
    _ADVERTISE: {"plan": bytes},
    _SHARE: {"roster": bytes, "places": list, "advertisements": list},
    _UPLOAD: {"places": list, "shares": list},
    _CONFIRM: {"live": bytes},
    _UNMASK: {"live": bytes, "places": list, "signatures": list},
}
_REPLIES: Mapping[str, Mapping[str, type]] = {
    _ADVERTISE: {"advertisement": bytes},
    _SHARE: {"places": list, "shares": list},
    _UPLOAD: {},
    _CONFIRM: {"signature": bytes},
    _UNMASK: {"places": list, "secrets": list, "shares": list},
}


@dataclass(frozen=True, kw_only=True)
class StageMessage:
    """One stage's request or reply.

    Attributes:
        stage: Its name.
        round_id: 32 hexadecimal digits; empty in the first request, whose plan has it.
        values: The rest, by name.
    """

    stage: str
    round_id: str
    values: Mapping[str, Any]

    def by_place(self, name: str) -> dict[int, Any]:
        """A set by place.

        Raises:
            RecordError: The lists differ in length, or a place is there twice.
        """
        places, items = self.values["places"], self.values[name]
        found = dict(zip(places, items, strict=False))
        if len(places) != len(items) or len(found) != len(places):
            raise RecordError(
                f"{self.stage}: {len(places)} places and {len(items)} {name}; one each is due"
            )
        return found

    def to_records(self) -> Records:
        """The content of the message."""
        record = ConfigRecord(protocol=PROTOCOL, stage=self.stage, round_id=self.round_id)
        record.update(self.values)
        return {SECURE: record}

    @classmethod
    def request(cls, records: Mapping[str, Mapping[str, Any]]) -> "StageMessage":
        """The stage that a message asks for.

        Raises:
            RecordError: Anything missing, unknown, of the wrong type or out of bounds.
        """
        return _parse(records, _REQUESTS)

    @classmethod
    def reply(cls, records: Mapping[str, Mapping[str, Any]]) -> "StageMessage":
        """The stage that a message answers; as `request`."""
        return _parse(records, _REPLIES)


def by_place(name: str, items: Mapping[int, Any]) -> dict[str, list[Any]]:
    """Two lists of a set by place, in the order of the places."""
    places = sorted(items)
    return {"places": places, name: [items[place] for place in places]}


def _parse(
    records: Mapping[str, Mapping[str, Any]], stages: Mapping[str, Mapping[str, type]]
) -> StageMessage:
    record = dict(records.get(SECURE, {}))
    if record.pop("protocol", None) != PROTOCOL:
        raise RecordError(
            f"not a message of secure aggregation {PROTOCOL}: install the same rootlet version on "
            "both sides"
        )
    stage, round_id = record.pop("stage", None), record.pop("round_id", None)
    if not isinstance(stage, str) or stage not in stages or not isinstance(round_id, str):
        raise RecordError(f"stage {stage!r:.40}, round_id {round_id!r:.40}: must be a stage's")
    expected = stages[stage]
    if set(record) != set(expected):
        raise RecordError(f"{stage} has {sorted(record)!r:.200}; expected {sorted(expected)}")
    for name, kind in expected.items():
        if type(record[name]) is not kind:
            raise RecordError(f"{stage}: {name} is not of type {kind.__name__}")
        if kind is list:
            _check_list(stage, name, record[name])
    return StageMessage(stage=stage, round_id=round_id, values=record)


def _check_list(stage: str, name: str, items: list[Any]) -> None:
    kind = int if name == "places" else bool if name == "secrets" else bytes
    if len(items) > MAX_ITEMS or any(type(item) is not kind for item in items):
        raise RecordError(f"{stage}: {name} must be at most {MAX_ITEMS} of {kind.__name__}")
    if kind is int and any(not 0 <= item < MAX_ITEMS for item in items):
        raise RecordError(f"{stage}: a place lies in 0..{MAX_ITEMS - 1}")
