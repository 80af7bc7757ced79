"""TLS for `rootlet serve`: a local authority and server certificate, or the operator's own files.

`--tls auto` makes a P-256 certificate authority once, and a server certificate for the names that
devices dial. Both stay in the state directory (private keys with mode 0600), so devices keep
trusting the same authority after a restart; the server certificate is made anew when a name is
missing from it or its end is near.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rootlet_runtime.durable import write_atomically
from rootlet_server.errors import CertificateError
from rootlet_server.federation.address import local_names
from rootlet_server.federation.private_file import write_private

_CA_LIFETIME = datetime.timedelta(days=3650)
_SERVER_LIFETIME = datetime.timedelta(days=365)
_RENEW_BEFORE = datetime.timedelta(days=30)
_CLOCK_SKEW = datetime.timedelta(hours=1)
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of a server.

    Attributes:
        ca: The authority that devices must trust (`rootlet device --root-certificate`).
        certificate: The server's certificate, with its chain.
        key: The server's private key.
        local_name: A name in the certificate by which processes of this machine reach the server.
    """

    ca: Path
    certificate: Path
    key: Path
    local_name: str

    @classmethod
    def load(cls, ca: Path, certificate: Path, key: Path, *, host: str) -> "TlsFiles":
        """Take the operator's files.

        Args:
            ca: PEM file of the authority.
            certificate: PEM file of the server certificate.
            key: PEM file of its private key.
            host: The address that the server listens on.

        Raises:
            CertificateError: a file cannot be read, the key is not the certificate's, or the
                certificate has no name by which the server's own processes could reach it.
        """
        try:
            names = _names_of(x509.load_pem_x509_certificate(certificate.read_bytes()))
            x509.load_pem_x509_certificate(ca.read_bytes())
            private = serialization.load_pem_private_key(key.read_bytes(), password=None)
            served = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        except (OSError, ValueError, TypeError) as error:
            raise CertificateError(
                f"the TLS files {ca}, {certificate}, {key} cannot be used: {error}; give PEM files "
                "of the authority, the server certificate and its unencrypted key"
            ) from None
        if _public_bytes(private.public_key()) != _public_bytes(served):
            raise CertificateError(f"{key} is not the private key of {certificate}; give the pair")
        candidates = [name for name in local_names(host) if name in names]
        if not candidates:
            raise CertificateError(
                f"{certificate} is for {', '.join(sorted(names)) or 'no name'}, but the server's "
                f"own processes reach it as {' or '.join(local_names(host))}; add one of these "
                "names to the certificate, or use --tls auto"
            )
        return cls(ca=ca, certificate=certificate, key=key, local_name=candidates[0])


def make_local_tls(directory: Path, host: str, names: Sequence[str] = ()) -> TlsFiles:
    """The authority and server certificate of `--tls auto`, made or reused.

    Args:
        directory: Where they are kept; made with mode 0700.
        host: The address that the server listens on.
        names: Further names and addresses that devices dial.

    Returns:
        The files, with `ca` to be copied to the devices.

    Raises:
        CertificateError: files from an earlier start cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = {*_LOOPBACK_NAMES, *local_names(host), *names}
    files = TlsFiles(
        ca=directory / "ca.pem",
        certificate=directory / "server.pem",
        key=directory / "server.key",
        local_name=local_names(host)[0],
    )
    ca_key_path = directory / "ca.key"
    try:
        if not (files.ca.exists() and ca_key_path.exists()):
            _make_authority(files.ca, ca_key_path)
            files.certificate.unlink(missing_ok=True)
        if not _is_current(files, wanted):
            _make_server(files, ca_key_path, wanted)
    except (ValueError, TypeError) as error:
        raise CertificateError(
            f"the certificates in {directory} cannot be read: {error}; remove the directory to "
            "make new ones (devices then need the new ca.pem)"
        ) from None
    return files


def _make_authority(ca: Path, key_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rootlet local authority")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), _CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(key_path, _private_bytes(key))
    write_atomically(ca, certificate.public_bytes(serialization.Encoding.PEM))


def _make_server(files: TlsFiles, ca_key_path: Path, names: set[str]) -> None:
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rootlet serve")])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), _SERVER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in sorted(names)]),
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    write_private(files.key, _private_bytes(key))
    write_atomically(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _is_current(files: TlsFiles, wanted: set[str]) -> bool:
    if not (files.certificate.exists() and files.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    if _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
        return False  # a crash came between the two files
    fresh = certificate.not_valid_after_utc - _RENEW_BEFORE > datetime.datetime.now(datetime.UTC)
    return fresh and wanted <= _names_of(certificate)


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)}


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_bytes(key: object) -> bytes:
    if not hasattr(key, "public_bytes"):
        raise CertificateError(f"a {type(key).__name__} cannot serve TLS; use an EC or RSA key")
    return bytes(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
