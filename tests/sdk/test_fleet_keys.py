"""Node keys: formats, permissions, and what `flwr supernode register` accepts."""

import subprocess

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from rootlet.errors import NodeKeyError
from rootlet.fleet.keys import CURVES, NodeKey


@pytest.mark.parametrize("curve", CURVES)
def test_a_key_is_saved_privately_and_loaded_again(tmp_path, curve):
    key = NodeKey.generate(curve)
    path = tmp_path / "keys" / "node.key"
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name("node.key.pub").read_text().strip() == key.public_openssh
    assert NodeKey.load(path).public_pem == key.public_pem
    assert NodeKey.load_or_generate(path).public_pem == key.public_pem
    with pytest.raises(FileExistsError):
        key.save(path)


def test_a_missing_key_is_made(tmp_path):
    made = NodeKey.load_or_generate(tmp_path / "node.key")
    assert NodeKey.load(tmp_path / "node.key").public_pem == made.public_pem


@pytest.mark.parametrize("curve", CURVES)
def test_flwr_accepts_the_public_key_and_the_signature(tmp_path, curve):
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

    key = NodeKey.generate(curve)
    path = tmp_path / "node.pub"
    path.write_text(key.public_openssh)
    assert try_load_public_key(path) == key.public_pem
    public = bytes_to_public_key(key.public_pem)
    assert verify_signature(public, b"timestamp", key.sign(b"timestamp"))
    assert not verify_signature(public, b"another", key.sign(b"timestamp"))


@pytest.mark.parametrize("bits", [256, 384])
def test_keys_of_ssh_keygen_are_read(tmp_path, bits):
    path = tmp_path / "id"
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", str(bits), "-N", "", "-C", "", "-f", path]
    subprocess.run(command, check=True)
    key = NodeKey.load(path)
    assert key.public_openssh == (tmp_path / "id.pub").read_text().strip()
    public = serialization.load_pem_public_key(key.public_pem)
    public.verify(key.sign(b"x"), b"x", ec.ECDSA(hashes.SHA256()))


def pem(key, password=None):
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda: b"not a key", "PEM or OpenSSH"),
        (lambda: b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "PEM or OpenSSH"),
        (lambda: pem(ec.generate_private_key(ec.SECP256R1()), b"secret"), "passphrase"),
        (lambda: pem(ec.generate_private_key(ec.SECP521R1())), "P-256 or P-384"),
        (lambda: pem(ec.generate_private_key(ec.SECP256K1())), "P-256 or P-384"),
        (lambda: pem(rsa.generate_private_key(65537, 2048)), "P-256 or P-384"),
        (lambda: pem(ed25519.Ed25519PrivateKey.generate()), "P-256 or P-384"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, content, match):
    path = tmp_path / "node.key"
    path.write_bytes(content())
    path.chmod(0o600)
    with pytest.raises(NodeKeyError, match=match):
        NodeKey.load(path)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "node.key"
    NodeKey.generate().save(path)
    path.chmod(0o640)
    with pytest.raises(NodeKeyError, match="chmod 600"):
        NodeKey.load(path)


def test_a_missing_file_and_an_unknown_curve_are_refused(tmp_path):
    with pytest.raises(NodeKeyError, match="cannot be read"):
        NodeKey.load(tmp_path / "absent")
    with pytest.raises(NodeKeyError, match="P-521"):
        NodeKey.generate("P-521")
