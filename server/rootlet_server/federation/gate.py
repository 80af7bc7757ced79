"""What of a SuperLink may be reached over the network: the Fleet API, and nothing else.

Since flwr 1.41 one port serves three APIs. The Fleet API authenticates devices. The Control API
does not authenticate anyone in the open-source SuperLink, and its `start-run` runs the caller's
code on the server; the Runtime API is for the server's own processes. Both are therefore answered
only for callers on this machine.

A body is read before its sender is authenticated, so it is bounded for network callers here.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

NETWORK_PREFIX = "/v1/fleet/"
MAX_BODY_BYTES = 16 * 2**20  # an object has at most 5 MiB, an announcement some hundred bytes each
_REFUSAL = b'{"code": 403, "detail": "only the Fleet API is served over the network"}'
_TOO_LARGE = b'{"code": 413, "detail": "the body is larger than any Fleet request"}'


class FleetGate:
    """ASGI middleware that answers 403 to network callers of anything but the Fleet API.

    A caller is local when its address is a loopback address, or the very address that it called (a
    process of this machine that dialled the machine's own public address).
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "lifespan" or is_local(scope):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif not str(scope.get("path", "")).startswith(NETWORK_PREFIX):
            await _refuse(send, 403, _REFUSAL)
        elif _announced(scope) > MAX_BODY_BYTES:
            await _refuse(send, 413, _TOO_LARGE)
        else:
            await self._app(scope, _bounded(receive), send)


async def _refuse(send: Send, status: int, content: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _announced(scope: Scope) -> int:
    """The length that the request announces; 0 where it comes in chunks, which are counted."""
    length = dict(scope.get("headers", ())).get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


def _bounded(receive: Receive) -> Receive:
    """A `receive` that hangs up on a body that grows beyond the bound."""
    left = MAX_BODY_BYTES

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal left
        event = await receive()
        left -= len(event.get("body", b""))
        return event if left >= 0 else {"type": "http.disconnect"}

    return bounded


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
