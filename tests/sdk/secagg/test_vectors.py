"""Known answers: of the standards underneath, and of our own format, which others implement too."""

import importlib.util
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from rootlet.secagg import keys
from rootlet.secagg.masks import STREAMS, keystream

VECTORS = Path(__file__).parents[2] / "vectors"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, VECTORS / f"{name}.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


@pytest.fixture(scope="module")
def made():
    return json.loads(json.dumps(loaded("make_secagg_vectors").vectors()))


@pytest.mark.parametrize(
    "part",
    [
        *("shamir", "masks", "keys", "graphs", "plans", "roster", "numbers"),
        *("noise", "privacy", "encoded", "clipped"),
    ],
)
def test_our_own_answers_are_those_of_the_file(made, part):
    committed = json.loads((VECTORS / "secagg.json").read_text())
    assert made.keys() == committed.keys()
    if part == "numbers":
        rotated = committed[part].pop("rotated_unit_vector_3_of_11")
        assert made[part].pop("rotated_unit_vector_3_of_11") == pytest.approx(rotated, abs=1e-12)
    if part == "privacy":
        bounds = [case.pop("at_most") for case in committed[part]["epsilon"]]
        found = [case.pop("at_most") for case in made[part]["epsilon"]]
        assert found == pytest.approx(bounds, rel=1e-12)
    assert made[part] == committed[part]


def test_refusals_are_in_the_words_of_the_file():
    found = json.loads(json.dumps(loaded("make_secagg_refusals").refusals()))
    assert found == json.loads((VECTORS / "secagg_refusals.json").read_text())


def test_x25519_by_rfc_7748_section_6_1():
    bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
    alice_public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(bob))
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert keys.agree(private, bytes.fromhex(alice_public)).hex() == shared


def test_chacha20_by_rfc_8439_section_a_1():
    """Test vector 1: a key of zeros, counter 0."""
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert keystream(bytes(32), 32, STREAMS[1]).hex() == expected


def test_aes_256_by_fips_197_appendix_c_3():
    """Counter mode's first block is the cipher of the counter: here the example's plaintext."""
    key = bytes(range(32))
    counter = bytes.fromhex("00112233445566778899aabbccddeeff")
    block = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(16))
    assert block.hex() == "8ea2b7ca516745bfeafc49904b496089"
    zero = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes(16))  # noqa: S305
    assert keystream(key, 16) == zero
