"""A verified bundle: the only thing a device runs.

``Bundle.load`` checks in this order, and the engine sees nothing of a bundle that fails: the
archive, the signature over the exact bytes of the manifest, the manifest, its version, its expiry,
every file's presence, size and SHA-256, the operators of each graph, the initial adapter.
"""

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Self

import safetensors
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rootlet_runtime import signing, strict_json
from rootlet_runtime.archive import Archive, BundleLimits
from rootlet_runtime.errors import (
    AdapterError,
    ExpiredError,
    ExtraFileError,
    HashMismatchError,
    ManifestError,
    MissingFileError,
    RollbackError,
    SignatureError,
    SizeLimitError,
    UnknownPublisherError,
    UnsignedError,
)
from rootlet_runtime.manifest import ADAPTER_FILE, BASE_FILE, Manifest, format_time
from rootlet_runtime.operators import GraphSummary, check_graph
from rootlet_runtime.tensors import Arrays, check_arrays
from rootlet_runtime.tflite_check import check_model

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
DEFAULT_LIMITS = BundleLimits()


class Bundle:
    """A bundle that passed every check; made by :meth:`load`.

    Attributes:
        manifest: what the publisher declares.
        manifest_sha256: SHA-256 (hex) of the manifest's exact bytes; it identifies the bundle.
        publisher: the trusted key that signed it, or ``None`` (only where unsigned bundles were
            allowed).
        summaries: what each graph uses, by role.
    """

    def __init__(
        self,
        archive: Archive,
        raw_manifest: bytes,
        manifest: Manifest,
        publisher: Ed25519PublicKey | None,
    ) -> None:
        self._archive = archive
        self.path = archive.path
        self.manifest = manifest
        self.manifest_sha256 = hashlib.sha256(raw_manifest).hexdigest()
        self.publisher = publisher
        self.summaries: dict[str, GraphSummary] = {}
        self._adapter: Arrays = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        trusted_keys: Sequence[Ed25519PublicKey],
        allow_unsigned: bool = False,
        minimum_version: int = 0,
        now: datetime | None = None,
        limits: BundleLimits = DEFAULT_LIMITS,
    ) -> Self:
        """Maps and verifies a bundle.

        Args:
            path: the file. It must not change while the bundle is in use.
            trusted_keys: the publishers whose bundles may run here.
            allow_unsigned: for tools and tests: also accepts a bundle without a signature, or,
                where no key is trusted at all, one signed by the key that its own manifest names.
            minimum_version: the newest version already accepted; older ones are refused.
            now: the time that the expiry is compared with; the clock's by default.
            limits: sizes that this device is willing to hold.

        Raises:
            BundleError: its subclass names the reason.
        """
        archive = Archive(path, limits)
        try:
            if MANIFEST_FILE not in archive:
                raise MissingFileError(f"{MANIFEST_FILE} is absent: not a bundle")
            raw = bytes(archive[MANIFEST_FILE])
            manifest, publisher = _verified(
                archive, raw, trusted_keys, allow_unsigned=allow_unsigned
            )
            bundle = cls(archive, raw, manifest, publisher)
            bundle._check_age(minimum_version, now or datetime.now(UTC))
            bundle._check_files(limits)
            bundle._check_graphs()
            bundle._adapter = bundle._read_adapter()
        except BaseException:
            archive.close()
            raise
        return bundle

    def entry(self, name: str) -> memoryview:
        """The bytes of one file, a read-only view of the mapping."""
        return self._archive[name]

    @property
    def signature(self) -> bytes | None:
        """The signature's 64 bytes, if there is one."""
        archive = self._archive
        return bytes(archive[SIGNATURE_FILE]) if SIGNATURE_FILE in archive else None

    def initial_adapter(self) -> Arrays:
        """The adapter that the bundle ships, as copies."""
        return {name: array.copy() for name, array in self._adapter.items()}

    def release_pages(self) -> None:
        """Hands the file's pages back to the system; the next use reads them again."""
        self._archive.release_pages()

    def close(self) -> None:
        """Unmaps the file; close the bundle after its trainers have done their work."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_age(self, minimum_version: int, now: datetime) -> None:
        manifest = self.manifest
        if manifest.version < minimum_version:
            raise RollbackError(
                f"{manifest.name} version {manifest.version} is older than version "
                f"{minimum_version}, already accepted here; ask for the current bundle"
            )
        if manifest.expires is not None and now >= manifest.expires:
            raise ExpiredError(
                f"{manifest.name} version {manifest.version} expired at {manifest.expires_at} "
                f"(it is {format_time(now)}); ask the publisher for a new one, or set "
                "this device's clock"
            )

    def _check_files(self, limits: BundleLimits) -> None:
        declared, found = set(self.manifest.files), set(self._archive.entries)
        found -= {MANIFEST_FILE, SIGNATURE_FILE}
        if missing := sorted(declared - found):
            raise MissingFileError(f"{missing[0]} is declared by the manifest but absent")
        if extra := sorted(found - declared):
            raise ExtraFileError(f"{extra[0]} is present but not declared by the manifest")
        for name, entry in self.manifest.files.items():
            content = self.entry(name)
            if len(content) != entry.size:
                raise HashMismatchError(
                    f"{name}: {len(content)} bytes; the manifest declares {entry.size}"
                )
            digest = hashlib.sha256(content).hexdigest()
            if digest != entry.sha256:
                raise HashMismatchError(
                    f"{name}: its SHA-256 is {digest}; the manifest declares {entry.sha256}"
                )
        specs = (*self.manifest.adapter, *self.manifest.optimizer_state)
        state_bytes = 4 * sum(spec.elements for spec in specs)
        if state_bytes > limits.max_state_bytes:
            raise SizeLimitError(
                f"the adapter and its optimiser need {state_bytes} bytes; the limit is "
                f"{limits.max_state_bytes} (BundleLimits.max_state_bytes)"
            )

    def _check_graphs(self) -> None:
        base_bytes = len(self.entry(BASE_FILE))
        for role, spec in self.manifest.graphs.items():
            self.summaries[role] = check_graph(
                self.entry(spec.file), spec, self.manifest.inputs_of(role), base_bytes
            )
        if self.manifest.litert is not None:
            check_model(self.entry(self.manifest.litert.file), self.manifest)

    def _read_adapter(self) -> Arrays:
        try:
            arrays = safetensors.numpy.load(bytes(self.entry(ADAPTER_FILE)))
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{ADAPTER_FILE}: not readable as safetensors: {error}") from error
        try:
            return check_arrays(arrays, self.manifest.adapter)
        except AdapterError as error:
            raise ManifestError(f"{ADAPTER_FILE} differs from the manifest: {error}") from error


def _verified(
    archive: Archive,
    raw: bytes,
    trusted_keys: Sequence[Ed25519PublicKey],
    *,
    allow_unsigned: bool,
) -> tuple[Manifest, Ed25519PublicKey | None]:
    """The manifest and the trusted key that signed it, if one had to."""
    if SIGNATURE_FILE not in archive:
        return _unsigned(raw, allow_unsigned=allow_unsigned), None
    signature = bytes(archive[SIGNATURE_FILE])
    if len(signature) != signing.SIGNATURE_BYTES:
        raise SignatureError(
            f"{SIGNATURE_FILE}: {len(signature)} bytes; an Ed25519 signature has 64"
        )
    if allow_unsigned and not trusted_keys:
        return _self_signed(raw, signature), None
    signer = signing.find_signer(raw, signature, trusted_keys)
    if signer is None:
        raise _refusal(raw, trusted_keys)
    manifest = Manifest.from_json(raw)
    if manifest.publisher != signing.public_key_hex(signer):
        raise SignatureError(
            f"signed by {signing.public_key_hex(signer)}, but the manifest names "
            f"{manifest.publisher}"
        )
    return manifest, signer


def _unsigned(raw: bytes, *, allow_unsigned: bool) -> Manifest:
    if not allow_unsigned:
        raise UnsignedError(
            "the bundle carries no signature; sign it (rootlet bundle sign), "
            "or pass allow_unsigned=True where you made it yourself"
        )
    manifest = Manifest.from_json(raw)
    if manifest.publisher is not None:
        raise SignatureError(f"the manifest names {manifest.publisher}, but the signature is gone")
    return manifest


def _self_signed(raw: bytes, signature: bytes) -> Manifest:
    manifest = Manifest.from_json(raw)
    if manifest.publisher is None:
        raise SignatureError("the bundle carries a signature, but its manifest names no publisher")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(manifest.publisher))
    if signing.find_signer(raw, signature, [key]) is None:
        raise SignatureError(f"the signature is not {manifest.publisher}'s over this manifest")
    return manifest


def _refusal(
    raw: bytes, trusted_keys: Sequence[Ed25519PublicKey]
) -> SignatureError | UnknownPublisherError:
    """Reads the manifest only to say which of the two it is; nothing else of it is used."""
    trusted = [signing.public_key_hex(key) for key in trusted_keys]
    try:
        parsed = strict_json.parse(raw)
    except strict_json.StrictJsonError:
        parsed = None
    claimed = parsed.get("publisher") if isinstance(parsed, dict) else None
    if claimed in trusted or not isinstance(claimed, str):
        return SignatureError(
            "the signature does not belong to this manifest: the bundle was changed after it was "
            "signed, or damaged; fetch it again"
        )
    names = ", ".join(trusted) or "none: pass trusted_keys"
    return UnknownPublisherError(
        f"signed by {claimed[:64]!r}, which is not trusted here ({names}); trust that publisher's "
        "key, or get the bundle from one that is trusted"
    )
