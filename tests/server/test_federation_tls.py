"""`--tls auto`, the operator's own certificates, and the keys of devices."""

import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from rootlet.fleet.keys import NodeKey
from rootlet_server.errors import CertificateError, NodeKeyError
from rootlet_server.federation.node_keys import key_files, load_public_key
from rootlet_server.federation.tls import TlsFiles, make_local_tls


def names_of(path):
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName)} | {
        str(address) for address in names.get_values_for_type(x509.IPAddress)
    }


def test_the_certificate_names_what_devices_dial_and_loopback(tmp_path):
    files = make_local_tls(tmp_path / "tls", "127.0.0.1", ["edge.example.org", "192.168.1.7"])
    assert names_of(files.certificate) == {
        "127.0.0.1", "::1", "localhost", "edge.example.org", "192.168.1.7",
    }  # fmt: skip


def test_openssl_accepts_the_chain(tmp_path):
    files = make_local_tls(tmp_path / "tls", "127.0.0.1")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = ssl.create_default_context(cafile=str(files.ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    right = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (left, right):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert left.version() == "TLSv1.3"


def test_private_keys_are_readable_by_their_owner_only(tmp_path):
    files = make_local_tls(tmp_path / "tls", "127.0.0.1")
    for path in (files.key, tmp_path / "tls" / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_restart_keeps_the_authority_and_the_certificate(tmp_path):
    first = make_local_tls(tmp_path / "tls", "127.0.0.1", ["edge.example.org"])
    before = {path: path.read_bytes() for path in (first.ca, first.certificate, first.key)}
    again = make_local_tls(tmp_path / "tls", "127.0.0.1", ["edge.example.org"])
    assert {path: path.read_bytes() for path in before} == before
    assert again == first


def test_a_crash_between_key_and_certificate_is_made_good(tmp_path):
    files = make_local_tls(tmp_path / "tls", "127.0.0.1")
    other = make_local_tls(tmp_path / "other", "127.0.0.1")
    files.key.write_bytes(other.key.read_bytes())  # the key is written first
    again = make_local_tls(tmp_path / "tls", "127.0.0.1")
    TlsFiles.load(again.ca, again.certificate, again.key, host="127.0.0.1")


def test_a_new_name_makes_a_new_certificate_under_the_same_authority(tmp_path):
    first = make_local_tls(tmp_path / "tls", "127.0.0.1")
    authority = first.ca.read_bytes()
    again = make_local_tls(tmp_path / "tls", "127.0.0.1", ["edge.example.org"])
    assert again.ca.read_bytes() == authority
    assert "edge.example.org" in names_of(again.certificate)


def test_a_damaged_certificate_is_named_with_the_remedy(tmp_path):
    files = make_local_tls(tmp_path / "tls", "127.0.0.1")
    files.certificate.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    with pytest.raises(CertificateError, match="remove the directory"):
        make_local_tls(tmp_path / "tls", "127.0.0.1")


def test_the_operators_files_are_taken_with_a_local_name(tmp_path):
    made = make_local_tls(tmp_path / "tls", "127.0.0.1")
    loaded = TlsFiles.load(made.ca, made.certificate, made.key, host="127.0.0.1")
    assert loaded.local_name == "127.0.0.1"


def test_a_key_of_another_certificate_is_refused(tmp_path):
    one, other = (
        make_local_tls(tmp_path / "a", "127.0.0.1"),
        make_local_tls(tmp_path / "b", "127.0.0.1"),
    )
    with pytest.raises(CertificateError, match="is not the private key of"):
        TlsFiles.load(one.ca, one.certificate, other.key, host="127.0.0.1")


def test_a_missing_file_is_named(tmp_path):
    made = make_local_tls(tmp_path / "tls", "127.0.0.1")
    with pytest.raises(CertificateError, match=r"absent.pem"):
        TlsFiles.load(made.ca, tmp_path / "absent.pem", made.key, host="127.0.0.1")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("192.168.1.7", "192.168.1.7"),  # 127.0.0.1 would not reach it
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("::", "::1"),
    ],
)
def test_the_servers_own_processes_dial_an_address_that_it_listens_on(tmp_path, host, local):
    made = make_local_tls(tmp_path / "tls", host)
    assert made.local_name == local
    assert TlsFiles.load(made.ca, made.certificate, made.key, host=host).local_name == local


def test_a_certificate_that_the_servers_own_processes_cannot_use_is_refused(tmp_path):
    made = make_local_tls(tmp_path / "tls", "127.0.0.1")
    with pytest.raises(CertificateError, match=r"reach it as 192\.168\.1\.7; add"):
        TlsFiles.load(made.ca, made.certificate, made.key, host="192.168.1.7")


def test_device_keys_are_read_in_both_formats(tmp_path):
    key = NodeKey.generate("P-384")
    (tmp_path / "a.pub").write_text(key.public_openssh + "\n")
    (tmp_path / "b.pem").write_bytes(key.public_pem)
    (tmp_path / "notes.txt").write_text("not a key")
    files = key_files(tmp_path)
    assert [path.name for path in files] == ["a.pub", "b.pem"]
    assert [load_public_key(path) for path in files] == [key.public_pem] * 2


def test_an_empty_directory_would_let_nobody_in(tmp_path):
    with pytest.raises(NodeKeyError, match="holds no device key"):
        key_files(tmp_path)
    with pytest.raises(NodeKeyError, match="absent does not exist"):
        key_files(tmp_path / "absent")


def _pem(key):
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_pem(ed25519.Ed25519PrivateKey.generate().public_key()), "Ed25519PublicKey"),
        (_pem(ec.generate_private_key(ec.SECP256K1()).public_key()), "takes P-256"),
        (b"hello", "is not a public key"),
        (b"-----BEGIN EC PRIVATE KEY-----\n", "is not a public key"),
    ],
)
def test_a_key_that_the_fleet_api_would_refuse_is_named(tmp_path, content, reason):
    (tmp_path / "k.pem").write_bytes(content)
    with pytest.raises(NodeKeyError, match=reason):
        load_public_key(tmp_path / "k.pem")
