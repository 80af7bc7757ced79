"""The one message a device is working on, kept so that a crash does not lose it.

Flower hands each message out once. So a device writes down how far it is, in one file that each
stage replaces atomically:

```
PULLED ──► FETCHED ──► ANSWERED ──► (nothing)
announced  objects     reply to     pushed
           here        push
```

The file holds length-prefixed blobs: stage, announcement, reply, objects. A damaged file counts as
absent; objects are found by their hash, so that a flipped bit is damage.
"""

import contextlib
import enum
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import DecodeError

from rootlet.fleet.envelope import Envelope, SealedReply
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.objects import tree_ids
from rootlet_runtime.cipher import PLAIN, Cipher
from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import RootletError

_LENGTH_BYTES = 8
_FILE = "message"


class Stage(enum.Enum):
    """How far the device is with its message."""

    EMPTY = b"empty"
    PULLED = b"pulled"
    FETCHED = b"fetched"
    ANSWERED = b"answered"


class Mailbox:
    """A device's current message.

    Attributes:
        stage: How far the device is.
        envelope: The message, from PULLED on.
        contents: Its objects by id, in FETCHED.
        reply: The answer, in ANSWERED.

    Args:
        folder: Where the file lies, made readable by its owner only; None keeps everything in
            memory.
        cipher: What the message passes through.
    """

    stage: Stage
    envelope: Envelope | None
    contents: dict[str, bytes]
    reply: SealedReply | None

    def __init__(self, folder: Path | None = None, cipher: Cipher = PLAIN) -> None:
        self._folder, self._cipher = folder, cipher
        self._forget()
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._load(folder / _FILE)

    def pulled(self, envelope: Envelope) -> None:
        """Keep an announced message."""
        self._forget()
        self.stage, self.envelope = Stage.PULLED, envelope
        self._store()

    def fetched(self, contents: dict[str, bytes]) -> None:
        """Keep the objects of the message."""
        self.stage, self.contents = Stage.FETCHED, contents
        self._store()

    def answered(self, reply: SealedReply) -> None:
        """Keep the reply; the objects of the message are no longer needed."""
        self.stage, self.contents, self.reply = Stage.ANSWERED, {}, reply
        self._store()

    def clear(self) -> None:
        """Be done with the message."""
        self._forget()
        if self._folder is not None:
            (self._folder / _FILE).unlink(missing_ok=True)

    def remember_node(self, address: str, public_key: bytes, node_id: int) -> None:
        """Keep the node id that a server gave to a key."""
        if self._folder is not None:
            known = {**_identity(address, public_key), "node_id": node_id}
            write_atomically(self._folder / "node.json", json.dumps(known).encode())

    def node_id(self, address: str, public_key: bytes) -> int:
        """Return the node id that this server gave to this key; 0 where unknown."""
        if self._folder is None:
            return 0
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            known = json.loads((self._folder / "node.json").read_bytes())
            if _identity(address, public_key).items() <= known.items():
                return int(known["node_id"])
        return 0

    def _forget(self) -> None:
        self.stage = Stage.EMPTY
        self.envelope = None
        self.contents = {}
        self.reply = None

    def _store(self) -> None:
        if self._folder is None or self.envelope is None:
            return
        announced = MESSAGES["PullMessagesResponse"](
            messages_list=[MESSAGES["Message"](metadata=self.envelope.metadata)],
            message_object_trees=[self.envelope.tree],
        )
        sent = MESSAGES["PushMessagesRequest"]()
        if self.reply is not None:
            sent.messages_list.append(self.reply.message)
            sent.message_object_trees.append(self.reply.tree)
        objects = self.reply.contents if self.reply is not None else self.contents
        blobs = [self.stage.value, announced.SerializeToString(), sent.SerializeToString()]
        content = _prefixed([*blobs, *objects.values()])
        write_atomically(self._folder / _FILE, self._cipher.seal(_FILE, content))

    def _load(self, path: Path) -> None:
        try:
            content = self._cipher.open(_FILE, path.read_bytes())
            stage, announced, sent, *objects = _blobs(content)
            self._restore(Stage(stage), announced, sent, objects)
        except FileNotFoundError:
            return
        except (OSError, ValueError, IndexError, DecodeError, RootletError):
            self._forget()

    def _restore(self, stage: Stage, announced: bytes, sent: bytes, objects: list[bytes]) -> None:
        pulled = MESSAGES["PullMessagesResponse"].FromString(announced)
        self.envelope = Envelope(pulled.messages_list[0].metadata, pulled.message_object_trees[0])
        contents = {hashlib.sha256(content).hexdigest(): content for content in objects}
        tree = self.envelope.tree
        if stage is Stage.ANSWERED:
            pushed = MESSAGES["PushMessagesRequest"].FromString(sent)
            tree = pushed.message_object_trees[0]
            self.reply = SealedReply(pushed.messages_list[0], tree, contents)
        elif stage is Stage.FETCHED:
            self.contents = contents
        if stage is not Stage.PULLED and set(tree_ids(tree)) != set(contents):
            raise ValueError("objects are missing or damaged")
        self.stage = stage


def _identity(address: str, public_key: bytes) -> dict[str, str]:
    return {"address": address, "public_key_sha256": hashlib.sha256(public_key).hexdigest()}


def _prefixed(blobs: Iterable[bytes]) -> bytes:
    return b"".join(len(blob).to_bytes(_LENGTH_BYTES) + blob for blob in blobs)


def _blobs(content: bytes) -> list[bytes]:
    blobs, rest = [], memoryview(content)
    while rest:
        length = int.from_bytes(rest[:_LENGTH_BYTES])
        rest = rest[_LENGTH_BYTES:]
        if length > len(rest):
            raise ValueError("the file is cut short")
        blobs.append(bytes(rest[:length]))
        rest = rest[length:]
    return blobs
