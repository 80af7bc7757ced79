"""What of a device's answer to a stage may be used; a device is not trusted."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Message

from rootlet.fleet.records import Records
from rootlet.flower import from_record_dict
from rootlet.secagg.messages import MASKED, SECURE, StageMessage
from rootlet.secagg.plan import SecurePlan
from rootlet_server.errors import ReplyError

_HEADERS = 16_384


def stage_reply(message: Message, plan: SecurePlan, asked: Records) -> StageMessage:
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
    most = plan.values * plan.modulus_bits // 8 + _HEADERS
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
