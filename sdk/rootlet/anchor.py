"""Values outside the state directory, with which an older copy of it is noticed."""

import logging

from rootlet.errors import KeystoreError
from rootlet.keystore import KeyStore

_log = logging.getLogger(__name__)


class Anchor:
    """One value in a key store that anchors; in any other it is never there.

    Args:
        keystore: Where it is kept.
        entry: Under which name.

    Attributes:
        anchors: Whether anything is kept.
    """

    def __init__(self, keystore: KeyStore, entry: str) -> None:
        self._keystore, self._entry = keystore, entry
        self.anchors = keystore.anchors

    def read(self) -> str | None:
        """What was kept last.

        Raises:
            KeystoreError: The key store cannot be asked.
        """
        return self._keystore.read(self._entry) if self.anchors else None

    def keep(self, value: str) -> None:
        """Keeps a value; a key store that refuses is logged, and the next value anchors again."""
        if self.anchors:
            try:
                self._keystore.write(self._entry, value)
            except KeystoreError as error:
                _log.warning("a rollback to before this moment would not be noticed: %s", error)

    def forget(self) -> None:
        """Lets any value follow."""
        if self.anchors:
            self._keystore.remove(self._entry)
