"""Over the network a SuperLink answers the Fleet API, and nothing else."""

import asyncio

import pytest

from rootlet_server.federation.gate import MAX_BODY_BYTES, FleetGate, is_local

SERVER = ("192.168.1.7", 9444)


def status_of(path, client, server=SERVER):
    """The HTTP status that a request gets; 200 where it reaches the application."""
    sent = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request"}

    async def send(event):
        sent.append(event)

    scope = {"type": "http", "path": path, "client": client, "server": server}
    asyncio.run(FleetGate(application)(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-object",
        "/health",
        "/docs",
        "/openapi.json",
        "/",
        "/v1/fleet",
        "//v1/fleet/../control/start-run",
    ],
)
def test_a_network_caller_is_refused_anything_but_the_fleet_api(path):
    assert status_of(path, ("192.168.1.99", 5000)) == 403
    assert status_of(path, ("127.0.0.1", 5000)) == 200


def test_a_network_caller_reaches_the_fleet_api():
    assert status_of("/v1/fleet/pull-messages", ("192.168.1.99", 5000)) == 200


def read_through(body, client, length=None, size=2**20):
    """Bytes of a chunked request's body that reach the application, or the status of a refusal."""
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    taken, sent = [], []

    async def application(scope, receive, send):
        while (event := await receive())["type"] == "http.request":
            taken.append(len(event["body"]))
            if not event["more_body"]:
                return

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(event):
        sent.append(event)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    path = "/v1/fleet/push-object"
    scope = {"type": "http", "path": path, "client": client, "server": SERVER, "headers": headers}
    asyncio.run(FleetGate(application)(scope, receive, send))
    return sent[0]["status"] if sent else sum(taken)


def test_a_network_callers_body_is_bounded_before_anybody_is_authenticated():
    network, local = ("192.168.1.99", 5000), ("127.0.0.1", 5000)
    whole, beyond = bytes(MAX_BODY_BYTES), bytes(MAX_BODY_BYTES + 1)
    assert read_through(whole, network, len(whole)) == len(whole)
    assert read_through(whole, network) == len(whole)
    assert read_through(beyond, network, len(beyond)) == 413
    assert read_through(beyond, network) == MAX_BODY_BYTES
    assert read_through(beyond, local) == len(beyond)


@pytest.mark.parametrize(
    ("client", "local"),
    [
        (("127.0.0.1", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("192.168.1.7", 1), True),  # the machine that dialled its own address
        (("192.168.1.8", 1), False),
        (("::ffff:192.168.1.8", 1), False),
        (("unix", 0), False),
        (None, False),
    ],
)
def test_who_is_local(client, local):
    assert is_local({"client": client, "server": SERVER}) is local


def test_a_websocket_is_refused_too():
    async def application(scope, receive, send):
        pytest.fail("reached the application")

    async def nothing():
        return {"type": "websocket.connect"}

    sent = []

    async def send(event):
        sent.append(event)

    scope = {"type": "websocket", "path": "/x", "client": ("10.0.0.9", 1), "server": SERVER}
    asyncio.run(FleetGate(application)(scope, nothing, send))
    assert sent == [{"type": "websocket.close"}]
