"""The ways out of a state that is refused: without its examples, or without its ledger's anchor.

`DeviceClient.erase` is what an app calls. These are for a directory that no client opens any more,
because its files are not as they were written or an older copy of it was put back on purpose.
"""

from pathlib import Path

from rootlet.state import StateDirectory
from rootlet.store_head import FILE
from rootlet.vault import KeystoreChoice, open_vault


def erase_examples(state_dir: Path | str, keystore: KeystoreChoice | None = "file") -> None:
    """Destroys the examples' key and removes their files; what was learnt stays.

    Args:
        state_dir: The state directory; no client may use it.
        keystore: As for `DeviceClient`.

    Raises:
        StateError: A client uses the directory.
        KeystoreError: The key is missing, or the key store refuses.
    """
    with StateDirectory(Path(state_dir)) as state:
        vault = open_vault(state.path, keystore)
        if vault is not None:
            vault.erase_examples()
        for pattern in ("*.segment", "*.sealed", FILE):
            for path in state.examples.glob(pattern):
                path.unlink()
        for path in state.replay.glob("*.arrays"):
            path.unlink()


def forget_ledger(state_dir: Path | str, keystore: KeystoreChoice) -> None:
    """Lets a ledger begin anew, or go on from an older copy; its files are left alone.

    Args:
        state_dir: The state directory; no client may use it.
        keystore: As for `DeviceClient`.

    Raises:
        StateError: A client uses the directory.
        KeystoreError: The key is missing, or the key store refuses.
    """
    with StateDirectory(Path(state_dir)) as state:
        vault = open_vault(state.path, keystore)
        if vault is not None:
            vault.anchor("ledger").forget()
