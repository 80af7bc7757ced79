"""A device's connection to a SuperLink: what one builds from the twelve calls of the Fleet API."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rootlet.errors import (
    AuthenticationError,
    MessageGoneError,
    NodeStillActiveError,
    ProtocolError,
    RunEndedError,
    ServerRefusedError,
)
from rootlet.fleet import refusals
from rootlet.fleet.calls import FleetCalls
from rootlet.fleet.clock import ServerClock
from rootlet.fleet.endpoint import Endpoint
from rootlet.fleet.envelope import Answer, Envelope, SealedReply, seal_reply
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.objects import DEFAULT_LIMITS, Limits, check_object, tree_ids
from rootlet.fleet.transport import (
    DEFAULT_RETRY,
    HttpTransport,
    RetryPolicy,
    Traffic,
    Transport,
)

MIN_HEARTBEAT_S, MAX_HEARTBEAT_S = 10.0, 1800.0
"""Flower's bounds on the heartbeat interval."""

DEFAULT_HEARTBEAT_S = 15.0
"""A node is offline after two intervals without a heartbeat: a device that vanishes holds up a
round, and is locked out where it lost its node id, for 30 s at most; a gap in the network that
long costs it the round."""

OBJECT_WAIT_S = 60.0
"""How long a pulled message's objects may take to reach the server."""

PUSH_ATTEMPTS = 3


class FleetConnection(FleetCalls):
    """A node's connection to a SuperLink; a context manager that closes it.

    Attributes:
        address: As given.
        clock: The server's time, as far as known.
        traffic: Bytes moved so far.
    """

    def __init__(
        self,
        address: str,
        *,
        root_certificate: Path | None = None,
        node_key: NodeKey | None = None,
        heartbeat_interval_s: float = DEFAULT_HEARTBEAT_S,
        limits: Limits = DEFAULT_LIMITS,
        retry: RetryPolicy = DEFAULT_RETRY,
        transport: Transport | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare the connection; nothing is sent.

        Args:
            address: `host:port`, `https://host:port`, or `http://` to this machine.
            root_certificate: PEM file of the authority that signed the server's certificate; None
                for the system's authorities.
            node_key: None for a key that lives as long as this object, which works where the
                server does not authenticate nodes.
            heartbeat_interval_s: Within Flower's 10 to 1800 s.
            limits: Bounds on what is received.
            retry: Patience of the transport.
            transport: In place of HTTP, for tests.
            now: Seconds since the epoch.
            sleep: Waits between attempts; pass an event's `wait` to make waits interruptible.

        Raises:
            InsecureAddressError: Plain HTTP to another machine.
            ValueError: Not an address, or an interval out of bounds.
        """
        if not MIN_HEARTBEAT_S <= heartbeat_interval_s <= MAX_HEARTBEAT_S:
            raise ValueError(
                f"heartbeat_interval_s is {heartbeat_interval_s}; Flower accepts "
                f"{MIN_HEARTBEAT_S:.0f} to {MAX_HEARTBEAT_S:.0f} s"
            )
        endpoint = Endpoint.parse(address, with_certificate=root_certificate is not None)
        self.address = address
        self.clock = ServerClock(now)
        self.traffic = Traffic()
        self._ephemeral = node_key is None
        self._sleep = sleep
        key = node_key or NodeKey.generate()
        http = transport or HttpTransport(
            endpoint,
            node_key=key,
            root_certificate=root_certificate,
            retry=retry,
            max_response_bytes=limits.object_bytes + 2**20,
            clock=self.clock,
            traffic=self.traffic,
            sleep=sleep,
        )
        super().__init__(
            http, node_key=key, heartbeat_interval_s=heartbeat_interval_s, limits=limits
        )

    def activate(self) -> int:
        """Go online, registering the key first where the server wants that; return the node id.

        Raises:
            NodeStillActiveError: The server counts the key as online or does not know it.
        """
        try:
            self.node_id = self.activate_node()
        except NodeStillActiveError:
            if not self._register():
                raise
            self.node_id = self.activate_node()
        return self.node_id

    def resume(self, node_id: int) -> bool:
        """Go on as `node_id`, which this key had before; return whether the server agrees.

        Unlike an activation this succeeds while the server still counts the node as online.
        """
        try:
            known = self.send_node_heartbeat(node_id)
        except AuthenticationError:
            return False
        if known:
            self.node_id = node_id
        return known

    def heartbeat(self) -> bool:
        """Stay online; return whether the server still knows this node."""
        return self.send_node_heartbeat(self.node_id)

    def fetch(self, envelope: Envelope) -> dict[str, bytes]:
        """Return the objects of a message, by id, checked against their hashes.

        Raises:
            MessageGoneError: The server no longer has them, or did not get them in time.
            ProtocolError: One does not match its hash, or together they exceed the limits.
        """
        contents: dict[str, bytes] = {}
        budget = self.limits.message_bytes
        for object_id in tree_ids(envelope.tree, self.limits):
            contents[object_id] = self._fetch_object(envelope.run_id, object_id)
            budget -= len(contents[object_id])
            if budget < 0:
                raise ProtocolError(
                    f"message {envelope.message_id} exceeds {self.limits.message_bytes} bytes"
                )
        return contents

    def seal(self, envelope: Envelope, answer: Answer) -> SealedReply:
        """Return the reply to a message, dated by the server's clock."""
        return seal_reply(envelope, answer, now=self.clock.now())

    def push(self, reply: SealedReply, *, runtime_s: float = 0.0) -> bool:
        """Upload a reply; return whether the server holds it afterwards.

        False means that the server no longer wants it, or already took it: Flower does not say
        which. Repeating the call is harmless.

        Raises:
            RunEndedError: The run has ended.
            ProtocolError: The server asks for objects that the reply does not have, or does not
                store what it asked for.
        """
        for _ in range(PUSH_ATTEMPTS):
            session_id, wanted = self.push_messages(reply, runtime_s=runtime_s)
            if unknown := set(wanted) - set(reply.contents):
                raise ProtocolError(f"the server asks for unknown objects: {sorted(unknown)[:3]}")
            if not wanted:
                return not self.taken(reply)
            if all(self._push_object(reply, session_id, object_id) for object_id in wanted):
                return True
        raise ProtocolError(
            f"the server did not store reply {reply.message_id} in {PUSH_ATTEMPTS} attempts"
        )

    def taken(self, reply: SealedReply) -> bool:
        """Return whether the server no longer holds a pushed reply.

        The ServerApp deletes a reply's objects when it has read it; the end of the run does too.
        """
        try:
            return self.pull_object(reply.run_id, reply.message_id) is None
        except RunEndedError:
            return True

    def deactivate(self) -> None:
        """Go offline, and unregister a key that ends with this object. Repeating is harmless."""
        _unless_code(refusals.DEACTIVATION_FAILED, self.deactivate_node)
        if self._ephemeral:
            _unless_code(refusals.UNREGISTRATION_FAILED, self.unregister_node)

    def close(self) -> None:
        """Close the HTTP connections; the node stays as it is on the server."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _register(self) -> bool:
        """Register the key where the server takes registrations and does not know it yet."""
        try:
            self.register_node()
        except ServerRefusedError as error:
            if error.code in {refusals.REGISTRATION_DISABLED, refusals.PUBLIC_KEY_IN_USE}:
                return False
            raise
        return True

    def _fetch_object(self, run_id: int, object_id: str) -> bytes:
        waited_s, wait_s = 0.0, 0.05
        while (content := self.pull_object(run_id, object_id)) == b"":
            if waited_s >= OBJECT_WAIT_S:
                raise MessageGoneError(
                    f"object {object_id} did not reach the server in {waited_s:.0f} s"
                )
            self._sleep(wait_s)
            waited_s += wait_s
            wait_s = min(2 * wait_s, 2.0)
        if content is None:
            raise MessageGoneError(f"the server no longer has object {object_id}")
        check_object(object_id, content, self.limits)
        return content

    def _push_object(self, reply: SealedReply, session_id: str, object_id: str) -> bool:
        """Upload an object; a repetition after a lost answer counts as stored."""
        content = reply.contents[object_id]
        if self.push_object(reply.run_id, session_id, object_id, content):
            return True
        return bool(self.pull_object(reply.run_id, object_id))


def _unless_code(code: int, call: Callable[[], None]) -> None:
    """Make a call whose effect may already be there, which the server reports by `code`."""
    try:
        call()
    except ServerRefusedError as error:
        if error.code != code:
            raise
