"""A refreshed feedback beside the rounds: read again before each, sent to whom may lack it."""

import logging
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rootlet.feedback_record import MAX_FEEDBACK_BYTES
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.errors import FeedbackPartError
from rootlet_runtime.feedback_part import open_part, read_part
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.replies import FEEDBACK_VERSION

log = logging.getLogger(__name__)


class FeedbackFile:
    """The part that an operator or a job keeps in one file, and the nodes that have it.

    The server needs no key of its own: it checks the publisher's signature as devices do, so that
    a damaged part costs no device its round. A node is taken at its word; a false one harms nobody
    else.

    Args:
        path: The part; there need not be one yet.
        bundle: The verified bundle that the devices hold.

    Attributes:
        version: The newest version read so far; 0 before the first.
    """

    def __init__(self, path: Path, bundle: Bundle) -> None:
        self.version = 0
        self._path = path
        self._bundle = bundle
        self._part = b""
        self._held: dict[int, int] = {}

    def read(self) -> bytes:
        """The part in the file, empty where there is no file; verified, and never an older one.

        Raises:
            FeedbackPartError: damaged, too large for a message, of another bundle or signer, or
                not newer than one read before.
        """
        if not self._path.exists():
            return b""
        part = read_part(self._path, limit=MAX_FEEDBACK_BYTES)
        if part != self._part:
            self._part, self.version = part, self._verified(part)
        return part

    def _verified(self, part: bytes) -> int:
        try:
            opened = open_part(part, self._bundle, minimum_version=max(1, self.version))
        except FeedbackPartError as error:
            raise FeedbackPartError(f"{self._path}: {error}") from error
        if opened.version == self.version:
            raise FeedbackPartError(
                f"{self._path}: another part of version {self.version}, which devices would not "
                "take again: give it a higher one"
            )
        return opened.version

    def for_round(self, round_: int) -> bytes:
        """The part for a round, or nothing where the file is refused, which the log then says."""
        try:
            return self.read()
        except FeedbackPartError as error:
            log.warning("round %d goes on without a feedback part: %s", round_, error)
            return b""

    def lacks(self, node: int) -> bool:
        """Whether a node is not known to hold the newest version."""
        return self._held.get(node, 0) < self.version

    def heard(self, node: int, metrics: Mapping[str, float]) -> None:
        """Remember which version a node's reply says that it holds."""
        self._held[node] = int(metrics.get(FEEDBACK_VERSION, 0))


def feedback_file(plan: FederationPlan) -> FeedbackFile | None:
    """The plan's feedback file, or None where it names none.

    Raises:
        BundleError: the bundle is refused.
    """
    if plan.feedback_path is None:
        return None
    keys = [Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in plan.trusted_keys]
    return FeedbackFile(plan.feedback_path, Bundle.load(plan.bundle_path, trusted_keys=keys))
