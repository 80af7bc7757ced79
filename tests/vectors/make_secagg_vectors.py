"""Makes `secagg.json`: known answers for other implementations of secure aggregation.

    python tests/vectors/make_secagg_vectors.py

Everything is fixed, nothing is drawn; bytes are in hexadecimal.
"""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rootlet.epsilon import epsilon_at_most
from rootlet.secagg import keys, shamir, update
from rootlet.secagg.graph import degree_for, neighbours, threshold_for
from rootlet.secagg.masks import STREAMS, add_masks, keystream
from rootlet.secagg.plan import NoisePlan, SecurePlan
from rootlet.secagg.quantise import quantise
from rootlet.secagg.roster import Advertisement, Roster, live_statement, to_bitmap
from rootlet.secagg.rotation import rotate
from rootlet.secagg.update import clipped, encode, flat, unflat
from rootlet_runtime.noise import discrete_gaussian
from rootlet_runtime.private_report import PrivacySpent

PATH = Path(__file__).with_name("secagg.json")


def seed(text):
    return hashlib.sha256(text.encode()).digest()


def plans():
    plain = SecurePlan(
        round_id="000102030405060708090a0b0c0d0e0f", run="7.0", manifest_sha256="ab" * 32,
        values=10, value_bits=8, modulus_bits=16, bound=1.5, devices=6, min_live=5, degree=5,
    )  # fmt: skip
    noise = NoisePlan(clip_norm=1.0, scale_bits=6, unit_inverse=200.0, honest=4)
    noisy = SecurePlan(
        round_id="0f0e0d0c0b0a09080706050403020100", run="7.1", manifest_sha256="cd" * 32,
        values=1000, value_bits=12, modulus_bits=32, bound=10.0, devices=6, min_live=5, degree=5,
        stream=STREAMS[1], noise=noise,
    )  # fmt: skip
    return plain, noisy


def shamir_vectors():
    coefficients = iter([int.from_bytes(seed("c1"), "big"), int.from_bytes(seed("c2"), "big")])
    shares = shamir.split(seed("secret"), [1, 2, 5, 9], 3, lambda: next(coefficients))
    return {
        "prime": hex(shamir.PRIME),
        "secret": seed("secret").hex(),
        "coefficients": [seed("c1").hex(), seed("c2").hex()],
        "points": [1, 2, 5, 9],
        "shares": [share.hex() for share in shares],
        "combined_from": [1, 5, 9],
        "combined": shamir.combine({1: shares[0], 5: shares[2], 9: shares[3]}).hex(),
    }


def mask_vectors():
    found = []
    for stream in STREAMS:
        for dtype in ("uint16", "uint32"):
            values = np.arange(8).astype(dtype)
            add_masks(values, [(seed("k1"), 1), (seed("k2"), -1)], stream)
            found.append(
                {
                    "stream": stream,
                    "dtype": dtype,
                    "key_added": seed("k1").hex(),
                    "key_subtracted": seed("k2").hex(),
                    "keystream_added": keystream(seed("k1"), 32, stream).hex(),
                    "values": list(range(8)),
                    "masked": values.tolist(),
                }
            )
    return found


def key_vectors():
    alice = X25519PrivateKey.from_private_bytes(seed("alice"))
    bob = X25519PrivateKey.from_private_bytes(seed("bob"))
    shared = keys.agree(alice, bob.public_key().public_bytes_raw())
    return {
        "private": seed("alice").hex(),
        "public_of_other": bob.public_key().public_bytes_raw().hex(),
        "agreed": shared.hex(),
        "context": seed("roster").hex(),
        "channel_3_1": keys.derive(shared, b"channel", seed("roster"), 3, 1).hex(),
        "mask_1_3": keys.derive(shared, b"mask", seed("roster"), 1, 3).hex(),
        "self_3": keys.derive(seed("own"), b"self", seed("roster"), 3).hex(),
        "own_seed": seed("own").hex(),
    }


def graph_vectors():
    cases = [(seed("g1"), 5), (seed("g1"), 70), (seed("g2"), 130)]
    return [
        {
            "context": context.hex(),
            "devices": n,
            "degree": degree_for(n),
            "threshold": threshold_for(n, degree_for(n)),
            "neighbours_of_0": list(neighbours(context, n, degree_for(n))[0]),
        }
        for context, n in cases
    ]


def plan_vectors():
    return [
        {"raw": plan.raw.decode(), "sha256": plan.digest.hex(), "largest_sum": plan.largest_sum}
        for plan in plans()
    ]


def roster_vectors():
    plan = plans()[0]
    advertisements = {}
    for number in range(6):
        key = Ed25519PrivateKey.from_private_bytes(seed(f"device {number}"))
        parts = tuple(seed(f"{part} {number}") for part in ("channel", "mask", "commitment"))
        identity = key.public_key().public_bytes_raw()
        advertisements[identity] = Advertisement.sign(key, b"certificate", plan, parts)
    roster = Roster.of(plan, advertisements)
    live = to_bitmap([0, 1, 2, 4, 5], 6)
    return {
        "plan": plan.raw.decode(),
        "raw": roster.raw.hex(),
        "sha256": roster.digest.hex(),
        "first_advertisement": advertisements[roster.ids[0]].raw.hex(),
        "live": live.hex(),
        "live_statement": live_statement(roster, live).hex(),
    }


def number_vectors():
    values = np.array([-2.0, -0.75, -0.01, 0.0, 0.3, 0.999, 1.5, 7.0], np.float32)
    spike = np.zeros(11)
    spike[3] = 1.0
    return {
        "values": values.tolist(),
        "units": 127 / 1.5,
        "bits": 8,
        "key": seed("u").hex(),
        "quantised": quantise(values, 127 / 1.5, 8, seed("u")).tolist(),
        "rotation_context": seed("rotation").hex(),
        "rotated_unit_vector_3_of_11": rotate(spike, seed("rotation")).tolist(),
    }


def pieces(name):
    """A generator that gives piece after piece of one keystream."""
    stream = iter(keystream(seed(name), 2**20))
    return lambda n: bytes(next(stream) for _ in range(n))


def noise_vectors():
    found = []
    for scale_bits in (2, 6, 24):
        draws = discrete_gaussian(50, pieces("noise"), scale_bits=scale_bits)
        found.append(
            {"scale_bits": scale_bits, "key": seed("noise").hex(), "draws": draws.tolist()}
        )
    return found


def privacy_vectors():
    noise = plans()[1].noise
    values = np.array([3.0, -4.0, 0.25], np.float32)
    cases = [
        [("device", 1, 1.0, 2.0)],
        [("device", 1, 1.0, 3.75)] * 12,
        [("example", 500, 0.01, 1.1), ("example", 1, 1.0, 5.0)],
    ]
    return {
        "longest": noise.longest(1000),
        "noise_multiplier": noise.noise_multiplier(1000),
        "update": values.tolist(),
        "clipped_to_2": clipped(values, 2.0).tolist(),
        "epsilon": [
            {
                "spent": [list(each) for each in case],
                "delta": 1e-5,
                "at_most": epsilon_at_most(
                    [
                        PrivacySpent(
                            unit=unit, steps=n, sample_rate=q, noise_multiplier=z, max_grad_norm=1.0
                        )
                        for unit, n, q, z in case
                    ],
                    1e-5,
                ),
            }
            for case in cases
        ],
    }


def encoded_vectors():
    """A device's whole numbers, of what the operating system would have drawn."""
    found = []
    values = (np.arange(40) * 7 % 19 - 9).astype(np.float32) / 16  # longer than 1
    for plan in [replace(each, values=40) for each in plans()]:
        source = pieces("encoded")
        noise = partial(discrete_gaussian, random_bytes=source)
        with (
            mock.patch("os.urandom", source),
            mock.patch.object(update, "discrete_gaussian", noise),
        ):
            whole = encode(values, plan)
        found.append(
            {
                "plan": plan.raw.decode(),
                "key": seed("encoded").hex(),
                "update": values.tolist(),
                "whole": whole.tolist(),
            }
        )
    return found


def clipped_vectors():
    """The adapter that answers a round with the server's noise, by its bits."""
    words = np.frombuffer(keystream(seed("clipped"), 2 * 4 * 300), "<u4").reshape(2, 300)
    received, step = (words / 2.0**31 - 1).astype(np.float32)
    before = {"b": received[:100].reshape(4, 25), "a": received[100:]}
    after = {"b": before["b"] + step[:100].reshape(4, 25), "a": before["a"] + step[100:]}
    short = clipped(flat(after) - flat(before), 0.5)
    answered = unflat(flat(before) + short, after)

    def bits(arrays):
        return {name: array.astype("<f4").tobytes().hex() for name, array in arrays.items()}

    return {
        "max_norm": 0.5,
        "received": bits(before),
        "trained": bits(after),
        "answered": bits(answered),
    }


def vectors():
    """All of them."""
    return {
        "shamir": shamir_vectors(),
        "masks": mask_vectors(),
        "keys": key_vectors(),
        "graphs": graph_vectors(),
        "plans": plan_vectors(),
        "roster": roster_vectors(),
        "numbers": number_vectors(),
        "noise": noise_vectors(),
        "privacy": privacy_vectors(),
        "encoded": encoded_vectors(),
        "clipped": clipped_vectors(),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n", encoding="utf-8")
