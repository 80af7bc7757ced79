"""A short way through the SuperLink for the requests that a round is made of.

A round moves every tensor of every device as an object of its own, twice over HTTP, and idle
devices ask for messages all the time. Flower leads each request through eight layers of middleware
and five hops to a thread pool, about 4 ms of one core; here Flower's own authentication and
Flower's own handler are called in one hop (`tests/benchmarks/bench_round_overhead.py` has the
difference).

Guarantee: only success is answered here. Whatever these functions refuse is handed, with its body,
to Flower's full stack, which refuses it in its own words. Object requests may safely be repeated,
and `pull-messages` fails, if it does, before it hands anything out.
"""

from collections.abc import Callable
from typing import Any

from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from rootlet_server.federation.gate import Application, Receive, Scope, Send

Answer = Any  # a protobuf message
Lane = Callable[[Request, bytes], Answer]


def _fleet(request_type: type[Any], handler: Callable[..., Answer]) -> Lane:
    def answer(request: Request, body: bytes) -> Answer:
        message = request.state.protobuf_request = request_type.FromString(body)
        authenticate_node(request)
        return handler(message, get_linkstate(request))

    return answer


def _pull_messages(message: Any, state: Any) -> Answer:
    return fleet_handlers.pull_messages(message, state, state.object_store)


def _runtime(request_type: type[Any], handler: Callable[..., Answer]) -> Lane:
    def answer(request: Request, body: bytes) -> Answer:
        state = get_linkstate(request)
        task = authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state)
        return handler(request_type.FromString(body), state, task)

    return answer


_LANES: dict[str, Lane] = {
    "/v1/fleet/pull-messages": _fleet(PullMessagesRequest, _pull_messages),
    "/v1/fleet/pull-object": _fleet(PullObjectRequest, fleet_handlers.pull_object),
    "/v1/fleet/push-object": _fleet(PushObjectRequest, fleet_handlers.push_object),
    "/v1/runtime/pull-object": _runtime(PullObjectRequest, runtime_handlers.pull_object),
    "/v1/runtime/push-object": _runtime(PushObjectRequest, runtime_handlers.push_object),
}


class FastLane:
    """ASGI middleware that answers the frequent requests; others and refusals pass."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        lane = _lane_of(scope)
        if lane is None:
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            return
        try:
            answer = await run_in_threadpool(lane, Request(scope), body)
        except Exception:  # whatever it is, Flower's own stack says it better
            await self._app(scope, _replay(body, receive), send)
            return
        content = answer.SerializeToString()
        headers = [
            (b"content-type", PROTOBUF_MEDIA_TYPE.encode()),
            (b"content-length", str(len(content)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _lane_of(scope: Scope) -> Lane | None:
    """The short way for a request, if there is one."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    if (b"content-type", PROTOBUF_MEDIA_TYPE.encode()) not in scope["headers"]:
        return None
    return _LANES.get(scope["path"])


async def _read(receive: Receive) -> bytes | None:
    """The body of the request, or None if the caller hung up."""
    chunks: list[bytes] = []
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        chunks.append(event.get("body", b""))
        if not event.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` once more, and then what `receive` gives."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return pending.pop() if pending else await receive()

    return again
