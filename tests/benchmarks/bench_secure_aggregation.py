"""Secure aggregation under load: processor time of a device and of the server.

    python tests/benchmarks/bench_secure_aggregation.py

All five stages, with real keys, shares, masks and signatures, in one process and one thread; no
network and no training. A share of the devices is lost after it has shared its secrets. A device's
figure is the median over the devices of its processor time in all stages, the server's the sum of
its own. The certificates were verified in an earlier round, as in a fleet that stays.

Beside it, in the same run: the processor's own AES-256-CTR through the same library, and Flower's
SecAgg+ by its own functions, called as its mod and its workflow call them, at its defaults of 22
bits and modulus 2^32, with as many neighbours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation import ndarrays_arithmetic as flower_arithmetic
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from report import print_heading, print_table

from rootlet.secagg.device import DeviceRound
from rootlet.secagg.enrolment import Certificate, Identity
from rootlet.secagg.graph import degree_for
from rootlet.secagg.masks import CHUNK_BYTES, add_masks
from rootlet.secagg.plan import SecurePlan
from rootlet.secagg.quantise import quantise
from rootlet.secagg.roster import Advertisement, Roster
from rootlet_server.secagg.aggregator import SecureAggregator

FLOWER_MODULUS, FLOWER_LEVELS, FLOWER_CLIP = 2**32, 2**22, 8.0
Timed = Callable[..., Any]


class Clock:
    """Adds up the processor time of what it calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Timed, *args: Any) -> Any:
        """The function's result."""
        start = time.process_time()
        try:
            return function(*args)
        finally:
            self.seconds += time.process_time() - start


def ours(devices: int, values: int, lost: int, bits: int) -> tuple[float, float]:
    """Milliseconds of a device and seconds of the server; the sum is held to the plain one."""
    authority = Ed25519PrivateKey.generate()
    expires = datetime.now(UTC) + timedelta(days=1)
    plan = SecurePlan(
        round_id=os.urandom(16).hex(), run="1", manifest_sha256="0" * 64, values=values,
        value_bits=bits, modulus_bits=16, bound=1.0, devices=devices, min_live=devices // 2,
        degree=degree_for(devices),
    )  # fmt: skip
    members = []
    for number in range(devices):
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        card = Certificate.issue(authority, public, name=f"device {number}", expires=expires)
        members.append(DeviceRound(Identity(key, card, (authority.public_key(),)), plan))
    clocks, server = [Clock() for _ in members], Clock()
    aggregator = SecureAggregator(plan, [authority.public_key()])
    ids = [
        server(aggregator.add_advertisement, clock(member.advertise).raw)
        for clock, member in zip(clocks, members, strict=True)
    ]
    roster = server(aggregator.close_roster)
    places = [server(aggregator.place, device) for device in ids]
    for clock, member, place in zip(clocks, members, places, strict=True):
        peers = server(aggregator.peers, place)

        def share(member: DeviceRound = member, peers: dict[int, bytes] = peers) -> Any:
            read = {j: Advertisement.parse(raw) for j, raw in peers.items()}
            return member.share(Roster.parse(plan, roster.raw), read)

        server(aggregator.add_shares, place, clock(share))
    base = (0.3 * np.random.default_rng(0).standard_normal(values)).astype(np.float32)
    expected, there = np.zeros(values, np.int64), range(lost, devices)
    for number in there:
        update, clock = np.roll(base, number), clocks[number]
        whole = clock(quantise, update, plan.unit_inverse, bits)
        expected += whole
        inbox = server(aggregator.inbox, places[number])
        server(aggregator.add_upload, places[number], clock(members[number].upload, inbox, whole))
    live = server(aggregator.close_live)
    for number in there:
        signature = clocks[number](members[number].confirm, live)
        server(aggregator.add_confirmation, places[number], signature)
    for number in there:
        signatures = server(aggregator.signatures, places[number])
        shares = clocks[number](members[number].unmask, live, signatures)
        server(aggregator.add_unmasking, places[number], shares)
    np.testing.assert_array_equal(server(aggregator.result), expected)
    return 1e3 * float(np.median([clocks[n].seconds for n in there])), server.seconds


def flowers(devices: int, values: int, lost: int, degree: int) -> tuple[float, float]:
    """The same of SecAgg+: one device's work measured, and the server's for all of them."""
    threshold, shape = 2 * (degree + 1) // 3 + 1, [(values,)]
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    shared = generate_shared_key(keys[0], keys[1].public_key())
    update = [(0.3 * np.random.default_rng(0).standard_normal(values)).astype(np.float32)]
    secret, server, client = os.urandom(32), Clock(), Clock()

    def device() -> tuple[Any, list[bytes]]:
        shares = create_shares(secret, threshold, degree + 1)
        create_shares(secret, threshold, degree + 1)
        for _ in range(degree):
            key = generate_shared_key(keys[0], keys[1].public_key())
            decrypt(key, encrypt(key, shares[0] + shares[1]))
        whole = quantize(update, FLOWER_CLIP, FLOWER_LEVELS)
        mask = pseudo_rand_gen(secret, FLOWER_MODULUS, shape)
        whole = flower_arithmetic.parameters_addition(whole, mask)
        for _ in range(degree):
            key = generate_shared_key(keys[0], keys[1].public_key())
            mask = pseudo_rand_gen(key, FLOWER_MODULUS, shape)
            whole = flower_arithmetic.parameters_addition(whole, mask)
        return flower_arithmetic.parameters_mod(whole, FLOWER_MODULUS), shares

    masked, shares = client(device)

    def unmask() -> None:
        total = masked
        for _ in range(devices - lost - 1):
            total = flower_arithmetic.parameters_addition(total, masked)
        for _ in range(devices):
            combine_shares(shares[:threshold])
        streams = (devices - lost) + lost * round(degree * (1 - lost / devices))
        for _ in range(streams):
            mask = pseudo_rand_gen(shared, FLOWER_MODULUS, shape)
            total = flower_arithmetic.parameters_subtraction(total, mask)
        flower_arithmetic.parameters_mod(total, FLOWER_MODULUS)

    server(unmask)
    return 1e3 * client.seconds, server.seconds


def rates(values: int, streams: int) -> tuple[float, float]:
    """Bytes a second of the mask loop and of the cipher alone, the best of nine each."""
    keys = [(os.urandom(32), 1) for _ in range(streams)]
    total = np.zeros(values, np.uint16)
    cipher = Cipher(algorithms.AES(keys[0][0]), modes.CTR(bytes(16))).encryptor()
    zeros, piece = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)

    def alone() -> None:
        for _ in range(streams * total.nbytes // CHUNK_BYTES):
            cipher.update_into(zeros, piece)

    found = []
    for work in (lambda: add_masks(total, keys), alone):
        times = []
        for _ in range(9):
            clock = Clock()
            clock(work)
            times.append(clock.seconds)
        found.append(streams * total.nbytes / min(times))
    return found[0], found[1]


def main() -> None:
    """One row a case; the last line is the share of the cipher's rate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    quick = parser.parse_args().quick
    print_heading("Secure aggregation", ("cryptography", "numpy", "flwr"))
    small, large, crowd = (1_000, 2_000, 70) if quick else (100_000, 1_000_000, 1000)
    rows = []
    for name, found in (
        (f"rootlet, n 100, d {large:,}, 10 lost, 8 bits", ours(100, large, 10, 8)),
        (f"rootlet, n {crowd}, d {large:,}, {crowd // 10} lost, 6 bits",
         ours(crowd, large, crowd // 10, 6)),
        (f"rootlet, n 100, d {small:,}, 10 lost, 8 bits", ours(100, small, 10, 8)),
        (f"Flower SecAgg+, n 100, d {small:,}, 10 lost", flowers(100, small, 10, 32)),
    ):  # fmt: skip
        rows.append((name, f"{found[0]:.1f}", f"{found[1]:.3f}"))
    print_table(("case", "a device, ms", "the server, s"), rows)
    loop, alone = rates(large, 33)
    print(f"mask loop {loop / 1e9:.2f} GB/s, AES-256-CTR alone {alone / 1e9:.2f} GB/s")
    print(f"mask loop / AES-256-CTR: ratio {loop / alone:.2f} (goal at least 0.7)")


if __name__ == "__main__":
    main()
