"""The twelve calls of Flower's Fleet API, typed."""

from typing import Any

from google.protobuf.message import DecodeError

from rootlet.errors import ProtocolError
from rootlet.fleet.envelope import Envelope, SealedReply
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.objects import Limits
from rootlet.fleet.transport import Transport


class FleetCalls:
    """One method for each call: no state but the node id, no policy.

    Attributes:
        node_key: The key that identifies this node.
        node_id: Given by the server at activation; 0 before. It belongs to the key for as long as
            the server remembers the key.
        heartbeat_interval_s: Announced to the server, in seconds.
        limits: Bounds on what is received.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        node_key: NodeKey,
        heartbeat_interval_s: float,
        limits: Limits,
    ) -> None:
        self.node_key = node_key
        self.node_id = 0
        self.heartbeat_interval_s = heartbeat_interval_s
        self.limits = limits
        self._transport = transport

    def register_node(self) -> int:
        """Register the node key (servers without node authentication only); return the node id."""
        answer = self._call("register-node", "RegisterNodeFleet", public_key=self._public_key)
        return int(answer.node_id)

    def activate_node(self) -> int:
        """Go online; return the node id."""
        answer = self._call(
            "activate-node",
            "ActivateNode",
            public_key=self._public_key,
            heartbeat_interval=self.heartbeat_interval_s,
        )
        return int(answer.node_id)

    def deactivate_node(self) -> None:
        """Go offline."""
        self._call("deactivate-node", "DeactivateNode", node_id=self.node_id)

    def unregister_node(self) -> None:
        """Forget the node key for good (servers without node authentication only)."""
        self._call("unregister-node", "UnregisterNodeFleet", node_id=self.node_id)

    def send_node_heartbeat(self, node_id: int) -> bool:
        """Tell that `node_id` is alive; return whether the server knows it.

        The server counts the node as online from then on, even where it had been offline.
        """
        node = MESSAGES["Node"](node_id=node_id)
        answer = self._call(
            "send-node-heartbeat",
            "SendNodeHeartbeat",
            node=node,
            heartbeat_interval=self.heartbeat_interval_s,
        )
        return bool(answer.success)

    def pull_messages(self) -> Envelope | None:
        """Return the next message for this node, or None. The server hands each out once.

        Raises:
            ProtocolError: A message for another node, or a tree beyond the limits.
        """
        answer = self._call("pull-messages", "PullMessages", node=self._node)
        if len(answer.messages_list) != len(answer.message_object_trees):
            raise ProtocolError("pull-messages answers with unequal numbers of messages and trees")
        if not answer.messages_list:
            return None
        if len(answer.messages_list) > 1:
            raise ProtocolError(
                f"pull-messages answers with {len(answer.messages_list)} messages; flwr 1.41 "
                "hands out one at a time"
            )
        envelope = Envelope(answer.messages_list[0].metadata, answer.message_object_trees[0])
        envelope.check(self.node_id, self.limits)
        return envelope

    def push_messages(self, reply: SealedReply, *, runtime_s: float) -> tuple[str, list[str]]:
        """Announce a reply; return the upload session's id and the objects to upload."""
        answer = self._call(
            "push-messages",
            "PushMessages",
            node=self._node,
            messages_list=[reply.message],
            message_object_trees=[reply.tree],
            clientapp_runtime_list=[runtime_s],
        )
        return answer.session_id, list(answer.objects_to_push)

    def get_run(self, run_id: int) -> Any:
        """Return Flower's Run (id, FAB, status).

        Raises:
            RunEndedError: The run is not running.
        """
        return self._call("get-run", "GetRun", node=self._node, run_id=run_id).run

    def get_fab(self, run_id: int, fab_hash: str) -> bytes:
        """Return the bytes of a run's Flower app; a rootlet device never runs them."""
        answer = self._call("get-fab", "GetFab", node=self._node, hash_str=fab_hash, run_id=run_id)
        return bytes(answer.fab.content)

    def pull_object(self, run_id: int, object_id: str) -> bytes | None:
        """Return an object's bytes; empty where it is announced only, None where it is unknown."""
        answer = self._call(
            "pull-object", "PullObject", node=self._node, run_id=run_id, object_id=object_id
        )
        return bytes(answer.object_content) if answer.object_found else None

    def push_object(self, run_id: int, session_id: str, object_id: str, content: bytes) -> bool:
        """Upload an object; return whether the session wanted it and it was stored."""
        answer = self._call(
            "push-object",
            "PushObject",
            node=self._node,
            run_id=run_id,
            object_id=object_id,
            object_content=content,
            session_id=session_id,
        )
        return bool(answer.stored)

    def confirm_message_received(self, envelope: Envelope) -> None:
        """Let the server delete a message's objects."""
        self._call(
            "confirm-message-received",
            "ConfirmMessageReceived",
            node=self._node,
            run_id=envelope.run_id,
            message_object_id=envelope.message_id,
        )

    @property
    def _public_key(self) -> bytes:
        return self.node_key.public_pem

    @property
    def _node(self) -> Any:
        return MESSAGES["Node"](node_id=self.node_id)

    def _call(self, name: str, message: str, **fields: Any) -> Any:
        request = MESSAGES[f"{message}Request"](**fields)
        body = self._transport.post(
            f"/v1/fleet/{name}", request.SerializeToString(deterministic=True)
        )
        answer = MESSAGES[f"{message}Response"]()
        try:
            answer.ParseFromString(body)
        except DecodeError as error:
            raise ProtocolError(f"{name} answers with {len(body)} bytes of garbage") from error
        return answer
