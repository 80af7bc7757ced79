"""What a device pulls and what it sends back, still in objects.

An `Envelope` is an announced message: its metadata and the tree of its objects. `open_envelope`
turns its objects into a `FleetRequest`. `seal_reply` turns the answer into a `SealedReply`, ready
to be stored and pushed.
"""

from dataclasses import dataclass
from typing import Any

from rootlet.errors import ProtocolError
from rootlet.fleet.decode import decode_message
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.objects import DEFAULT_LIMITS, Limits, encode_message, tree_ids
from rootlet.fleet.records import Records


@dataclass(frozen=True)
class Envelope:
    """A message that the server announced to this node.

    Attributes:
        metadata: Flower's Metadata.
        tree: Flower's ObjectTree.
    """

    metadata: Any
    tree: Any

    @property
    def run_id(self) -> int:
        """The run it belongs to."""
        return int(self.metadata.run_id)

    @property
    def message_id(self) -> str:
        """Its id: that of its root object."""
        return str(self.metadata.message_id)

    @property
    def expires_at(self) -> float:
        """When the server stops waiting for a reply, in seconds since the epoch (server's time)."""
        return float(self.metadata.created_at + self.metadata.ttl)

    def check(self, node_id: int, limits: Limits = DEFAULT_LIMITS) -> None:
        """Check that the envelope is for this node and its tree within the limits.

        Raises:
            ProtocolError: It is not.
        """
        if self.metadata.dst_node_id != node_id:
            raise ProtocolError(
                f"a message for node {self.metadata.dst_node_id} was handed to node {node_id}"
            )
        if tree_ids(self.tree, limits)[0] != self.message_id:
            raise ProtocolError(f"message {self.message_id:.64} has the objects of another one")


@dataclass(frozen=True)
class FleetRequest:
    """What the server asks of this device.

    Attributes:
        run_id: The run.
        group_id: The round, in Flower's counting.
        message_type: `train`, `evaluate` or `query`, possibly with `.<action>`.
        records: Its content.
        n_bytes: Bytes of its objects.
    """

    run_id: int
    group_id: str
    message_type: str
    records: Records
    n_bytes: int


@dataclass(frozen=True)
class Answer:
    """What a participant answers: records, or the reason why there are none.

    Attributes:
        records: The content; empty where `error` is given.
        error: What went wrong, for the server's log.
        code: Flower's or rootlet's error code (`rootlet.protocol`); 0 where there is no error.
    """

    records: Records
    error: str = ""
    code: int = 0


@dataclass(frozen=True)
class SealedReply:
    """A reply in objects.

    Attributes:
        message: Flower's Message with full metadata and an empty content, as push-messages wants.
        tree: Flower's ObjectTree.
        contents: Bytes of its objects, by id.
    """

    message: Any
    tree: Any
    contents: dict[str, bytes]

    @property
    def run_id(self) -> int:
        """The run it belongs to."""
        return int(self.message.metadata.run_id)

    @property
    def message_id(self) -> str:
        """Its id: that of its root object."""
        return str(self.message.metadata.message_id)

    @property
    def node_id(self) -> int:
        """The node that answers."""
        return int(self.message.metadata.src_node_id)


def open_envelope(
    envelope: Envelope, contents: dict[str, bytes], limits: Limits = DEFAULT_LIMITS
) -> FleetRequest:
    """Return the request in an envelope.

    Raises:
        ProtocolError: Malformed objects, beyond the limits, or an error where a request belongs.
    """
    message, records = decode_message(envelope.message_id, contents, limits)
    if records is None:
        raise ProtocolError(f"message {envelope.message_id} is an error, not a request")
    if message.metadata.run_id != envelope.run_id:
        raise ProtocolError(f"message {envelope.message_id} belongs to another run than announced")
    return FleetRequest(
        run_id=envelope.run_id,
        group_id=message.metadata.group_id,
        message_type=message.metadata.message_type,
        records=records,
        n_bytes=sum(map(len, contents.values())),
    )


def seal_reply(envelope: Envelope, answer: Answer, *, now: float) -> SealedReply:
    """Return the reply to an envelope.

    The reply expires when the request does: `ttl = request's created_at + ttl - now`.

    Args:
        envelope: The request's envelope.
        answer: Its content.
        now: The server's time, in seconds since the epoch.
    """
    metadata = MESSAGES["Metadata"](
        run_id=envelope.run_id,
        src_node_id=envelope.metadata.dst_node_id,
        dst_node_id=envelope.metadata.src_node_id,
        reply_to_message_id=envelope.message_id,
        group_id=envelope.metadata.group_id,
        ttl=envelope.expires_at - now,
        message_type=envelope.metadata.message_type,
        created_at=now,
    )
    message = MESSAGES["Message"](metadata=metadata)
    if answer.error:
        message.error.code = answer.code
        message.error.reason = answer.error
    objects, message_id = encode_message(message, None if answer.error else answer.records)
    message.metadata.message_id = message_id
    if not answer.error:
        message.content.SetInParent()  # Flower wants the content present, and empty
    return SealedReply(message, objects.tree(message_id), objects.contents)
