"""Makes `secagg_refusals.json`: what a device refuses in secure rounds, in Python's words.

    python tests/vectors/make_secagg_refusals.py

Of a plan that is no strict JSON the words after the first colon are the parser's own.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from rootlet.errors import RecordError
from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.masks import STREAMS
from rootlet.secagg.messages import SECURE, StageMessage
from rootlet.secagg.plan import NoisePlan, SecurePlan
from rootlet.secagg.policy import SecurePolicy
from rootlet.secagg.roster import Roster, from_bitmap

PATH = Path(__file__).with_name("secagg_refusals.json")
PLAIN = SecurePlan(
    round_id="000102030405060708090a0b0c0d0e0f", run="7.0", manifest_sha256="ab" * 32,
    values=10, value_bits=8, modulus_bits=16, bound=1.5, devices=6, min_live=5, degree=5,
)  # fmt: skip
NOISY = replace(
    PLAIN, values=1000, value_bits=12, modulus_bits=32, bound=10.0, stream=STREAMS[1],
    noise=NoisePlan(clip_norm=1.0, scale_bits=6, unit_inverse=200.0, honest=4),
)  # fmt: skip


def document(plan, **changes):
    """A plan's document with other values (None leaves one out), and others of its noise."""
    noise = changes.pop("noise", {})
    fields = asdict(plan) | changes
    if fields["noise"] is not None:
        fields["noise"] |= noise
    fields = {name: value for name, value in fields.items() if value is not None or name == "noise"}
    return json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def refusal(error, call):
    """What a call is refused with, which it must be."""
    try:
        call()
    except error as refused:
        return str(refused)
    raise AssertionError(call)


def plan_refusals():
    texts = [
        *(document(PLAIN, **change) for change in (
            {"schema": 2}, {"round_id": "ab"}, {"round_id": "AB" * 16},
            {"round_id": "'" + "z" * 200}, {"manifest_sha256": "ab"}, {"values": 0},
            {"values": 2**28 + 1}, {"value_bits": 1}, {"value_bits": 25}, {"modulus_bits": 8},
            {"bound": 0.0}, {"bound": 2.5e12}, {"devices": 1}, {"devices": 65_537}, {"min_live": 1},
            {"min_live": 7}, {"degree": 0}, {"stream": "rc4"}, {"devices": 256, "min_live": 5},
            {"bound": 1}, {"values": True}, {"more": 1}, {"degree": None}, {"run": "a\tb"},
        )),
        *(document(NOISY, **change) for change in (
            {"noise": {"honest": 6}}, {"noise": {"honest": 0}}, {"noise": {"clip_norm": 1e-13}},
            {"noise": {"unit_inverse": 1e13}}, {"noise": {"scale_bits": 1}},
            {"noise": {"scale_bits": 25}}, {"modulus_bits": 16, "noise": {"scale_bits": 12}},
            {"noise": {"more": 1}},
        )),
        document(PLAIN).replace("\n ", "\n  "),
        document(PLAIN).replace('"devices": 6', '"devices": NaN'),
        " " * 16_385,
    ]  # fmt: skip
    return [
        {
            "raw": text,
            "error": refusal(
                SecureRoundRefusedError, lambda raw=text: SecurePlan.parse(raw.encode())
            ),
        }
        for text in texts
    ]


def roster_refusals():
    rows = [
        bytes([number]) * 32 + hashlib.sha256(bytes([number])).digest() for number in range(100)
    ]
    six = rows[:6]
    wide = replace(PLAIN, devices=100, degree=33)
    rosters = [
        (PLAIN, six[0] + b"x"), (PLAIN, b"".join(rows[:7])), (PLAIN, b"".join([six[0], *six[:5]])),
        (PLAIN, b"".join([six[1], six[0], *six[2:]])), (PLAIN, b"".join(six[:4])), (PLAIN, b""),
        (replace(PLAIN, degree=3), b"".join(six)), (replace(wide, degree=31), b"".join(rows)),
        (wide, b"".join(rows)),
    ]  # fmt: skip
    found = [
        {
            "plan": each.raw.decode(),
            "roster": raw.hex(),
            "error": refusal(SecureRoundRefusedError, lambda e=each, r=raw: Roster.parse(e, r)),
        }
        for each, raw in rosters
    ]
    for live in (b"", b"\x3f\x00", b"\x40", b"\xbf"):
        why = refusal(SecureRoundRefusedError, lambda live=live: from_bitmap(live, 6))
        found.append(
            {
                "plan": PLAIN.raw.decode(),
                "roster": b"".join(six).hex(),
                "live": live.hex(),
                "error": why,
            }
        )
    return found


def policy_refusals():
    cases = [
        (PLAIN, {"min_live": 6}, 10), (PLAIN, {}, 11), (NOISY, {"min_noise_multiplier": 1.0}, 1000),
        (PLAIN, {"min_noise_multiplier": 0.25}, 10), (NOISY, {"max_clip_norm": 0.5}, 1000),
    ]  # fmt: skip
    return [
        {
            "plan": plan.raw.decode(),
            "floors": floors,
            "values": values,
            "error": refusal(
                SecureRoundRefusedError,
                lambda p=plan, f=floors, v=values: SecurePolicy(**f).check(
                    p, manifest_sha256=p.manifest_sha256, values=v
                ),
            ),
        }
        for plan, floors, values in cases
    ]


def message_refusals():
    begin = {"protocol": 1, "round_id": "ab" * 16}
    confirm = begin | {"stage": "confirm", "live": b"\x01"}
    upload = begin | {"stage": "upload", "places": [1, 2], "shares": [b"a", b"b"]}
    records = [
        {}, confirm | {"protocol": 2}, confirm | {"stage": "spy"},
        confirm | {"stage": 3}, confirm | {"round_id": 7}, begin | {"stage": "confirm"},
        confirm | {"seed": b"x", "mask": b"y"}, confirm | {"live": "text"}, confirm | {"live": [1]},
        upload | {"places": b""}, upload | {"places": [1.0, 2.0]}, upload | {"places": [1, 65_536]},
        upload | {"places": [True, False]}, upload | {"places": [-1, 2]},
        upload | {"shares": [1, 2]}, upload | {"shares": ["a", "b"]}, upload | {"places": [1]},
        upload | {"places": [1, 1]}, upload | {"places": [1, 1, 2]},
    ]  # fmt: skip

    def read(record):
        message = StageMessage.request({SECURE: record})
        message.by_place("shares")

    def plain(value):
        if isinstance(value, bytes):
            return {"hex": value.hex()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return [
        {
            "record": {name: plain(value) for name, value in record.items()},
            "error": refusal(RecordError, lambda record=record: read(record)),
        }
        for record in records
    ]


def refusals():
    """All of them."""
    return {
        "plans": plan_refusals(),
        "rosters": roster_refusals(),
        "policies": policy_refusals(),
        "messages": message_refusals(),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(refusals(), indent=1) + "\n", encoding="utf-8")
