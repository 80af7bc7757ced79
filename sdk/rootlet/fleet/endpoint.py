"""Where a SuperLink listens, and the rule that plain HTTP stays on this machine."""

import ipaddress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from rootlet.errors import InsecureAddressError


@dataclass(frozen=True)
class Endpoint:
    """Where a SuperLink listens."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, address: str, *, with_certificate: bool) -> Self:
        """Read `host:port`, with or without `https://` or `http://`.

        Without a scheme, TLS is used unless the host is this machine and no certificate is given.

        Raises:
            InsecureAddressError: Plain HTTP to another machine.
            ValueError: Not an address.
        """
        scheme, rest = address.split("://", 1) if "://" in address else ("", address)
        parts = urlsplit(f"//{rest}")
        if scheme not in {"", "http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError(f"address {address!r} is not host:port, https://host:port or http://…")
        try:
            port = parts.port
        except ValueError as error:
            raise ValueError(f"address {address!r} has no port in 1..65535: {error}") from error
        loopback = _is_loopback(parts.hostname)
        tls = scheme == "https" or (not scheme and (with_certificate or not loopback))
        if not tls and not loopback:
            raise InsecureAddressError(
                f"plain HTTP to {parts.hostname} would let anybody read and replay what this "
                "device sends; use https:// and the server's root certificate (http:// works to "
                "this machine only)"
            )
        if not tls and with_certificate:
            raise InsecureAddressError(
                f"{address!r} asks for plain HTTP although a root certificate is given; use https://"
            )
        if not port:
            raise ValueError(
                f"address {address!r} names no port; give HOST:PORT, as the server prints it"
            )
        return cls(parts.hostname, port, tls)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
