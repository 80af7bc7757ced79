"""Addresses: which are loopback, and what a public one must have before anything listens on it."""

import ipaddress

from rootlet_server.errors import PublicAddressError, ServeConfigError


def is_loopback(host: str) -> bool:
    """Whether `host` reaches this machine only; any name but `localhost` counts as public."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether `host` means every interface (`0.0.0.0`, `::`)."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def local_names(host: str) -> tuple[str, ...]:
    """Names by which processes of this machine reach a server that listens on `host`."""
    if not is_wildcard(host):
        return (host,)
    return ("::1", "localhost") if ":" in host else ("127.0.0.1", "localhost")


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def require_guarded(host: str, *, tls: bool, node_auth: bool) -> None:
    """Refuse a public address that is not guarded by TLS and node authentication.

    Raises:
        PublicAddressError: `host` is not loopback and a guard is missing.
        ServeConfigError: node authentication without TLS, whose headers could be replayed.
    """
    if node_auth and not tls:
        raise ServeConfigError(
            "node keys were given without TLS; authentication headers can be replayed by whoever "
            "sees them, so turn TLS on: --tls auto"
        )
    if is_loopback(host) or (tls and node_auth):
        return
    missing = " and ".join(
        remedy
        for present, remedy in (
            (tls, "TLS (--tls auto)"),
            (node_auth, "node authentication (--node-keys DIR)"),
        )
        if not present
    )
    raise PublicAddressError(
        f"{host} is reachable from other machines and would be served without {missing}; add it, "
        "or listen on 127.0.0.1"
    )
