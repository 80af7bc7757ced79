"""The refreshed feedback that one trainer learns by, and its copy on disk."""

import logging
from pathlib import Path

from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import FeedbackPartError
from rootlet_runtime.feedback_part import FeedbackPart, open_part, read_part
from rootlet_runtime.trainer import Trainer

_log = logging.getLogger(__name__)


class RefreshedFeedback:
    """Takes parts that the bundle's publisher signed, and never goes back to an older one.

    A part is verified whole before anything of it is used. Whoever calls holds the trainer.

    Args:
        trainer: Learns by it.
        path: Where the part is kept over a restart; None to forget it with this object.

    Attributes:
        version: Of the part that is kept; 0 for the bundle's own feedback, and without a `path`.
    """

    def __init__(self, trainer: Trainer, path: Path | None = None) -> None:
        self.version = 0
        self._used = 0
        self._trainer = trainer
        self._path = path
        if path is not None and path.exists():
            self._restore(path)

    def refresh(self, part: bytes) -> int:
        """Learns by a newer part from the next training on; returns its version.

        Raises:
            FeedbackPartError: It is not the publisher's for this bundle, or not newer.
        """
        return self._take(part, minimum=self._used + 1)

    def receive(self, part: bytes) -> int:
        """As `refresh`, for a server that may not know what is in use: the same version is left.

        Raises:
            FeedbackPartError: It is not the publisher's for this bundle, or older.
        """
        return self._take(part, minimum=max(1, self._used))

    def _take(self, part: bytes, *, minimum: int) -> int:
        opened = open_part(part, self._trainer.bundle, minimum_version=minimum)
        if opened.version == self._used:
            return opened.version
        self._load(opened)
        if self._path is not None:
            write_atomically(self._path, part)
            self.version = opened.version
        return opened.version

    def _load(self, opened: FeedbackPart) -> None:
        self._trainer.load_feedback(opened)
        self._used = opened.version

    def _restore(self, path: Path) -> None:
        try:
            self._load(open_part(read_part(path), self._trainer.bundle))
        except FeedbackPartError as error:
            _log.warning("training goes on with the bundle's own feedback: %s", error)
            return
        self.version = self._used
