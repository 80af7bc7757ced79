"""What of a SuperLink may be reached over the network: the Fleet API, and nothing else.

Since flwr 1.41 one port serves three APIs. The Fleet API authenticates devices. The Control API
does not authenticate anyone in the open-source SuperLink, and its `start-run` runs the caller's
code on the server; the Runtime API is for the server's own processes. Both are therefore answered
only for callers on this machine.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

NETWORK_PREFIX = "/v1/fleet/"
_REFUSAL = b'{"code": 403, "detail": "only the Fleet API is served over the network"}'


class FleetGate:
    """ASGI middleware that answers 403 to network callers of anything but the Fleet API.

    A caller is local when its address is a loopback address, or the very address that it called (a
    process of this machine that dialled the machine's own public address).
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if (
            scope["type"] == "lifespan"
            or is_local(scope)
            or str(scope.get("path", "")).startswith(NETWORK_PREFIX)
        ):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSAL})


def is_local(scope: Scope) -> bool:
    """Whether an ASGI request comes from this machine; an unknown caller does not."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    if server and client[0] == server[0]:
        return True
    try:
        return _unmapped(client[0]).is_loopback
    except ValueError:
        return False


def _unmapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address, with an IPv4 address written as IPv6 (`::ffff:…`) taken back to IPv4."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return parsed.ipv4_mapped
    return parsed
