"""Writing bundles: the same content and key give the same bytes."""

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy.typing as npt
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_runtime import signing
from rootlet_runtime.archive import ArchiveEntry, directory
from rootlet_runtime.bundle import MANIFEST_FILE, SIGNATURE_FILE, Bundle
from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import ManifestError, RollbackError, SizeLimitError
from rootlet_runtime.manifest import (
    ADAPTER_FILE,
    FileEntry,
    Manifest,
    format_time,
)
from rootlet_runtime.tensors import Arrays, check_arrays

Content = bytes | memoryview | Path

_CHUNK_BYTES = 2**20
_MAX_ZIP_BYTES = 2**32 - 1


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, Content],
    signing_key: Ed25519PrivateKey | None,
) -> Manifest:
    """Fills in the files' hashes and the publisher, signs, and writes atomically.

    Args:
        path: where the bundle goes; replaced only when the new one is whole.
        manifest: its ``files`` and ``publisher`` are replaced.
        files: content of each file but the manifest and its signature: bytes, or a path that is
            streamed.
        signing_key: ``None`` writes an unsigned bundle, which devices refuse.

    Returns:
        The manifest as written.

    Raises:
        ManifestError: the files are not those of a bundle, or the manifest would not be read back.
    """
    wanted = manifest.content_files
    if set(files) != set(wanted):
        raise ManifestError(f"files: {sorted(files)}; this bundle holds {sorted(wanted)}")
    publisher = None
    if signing_key is not None:
        publisher = signing.public_key_hex(signing_key.public_key())
    entries = {name: _file_entry(content) for name, content in files.items()}
    manifest = replace(manifest, files=entries, publisher=publisher)
    raw = manifest.to_json()
    Manifest.from_json(raw)
    contents: dict[str, Content] = {MANIFEST_FILE: raw}
    if signing_key is not None:
        contents[SIGNATURE_FILE] = signing_key.sign(raw)
    write_archive(path, contents | {name: files[name] for name in wanted})
    return manifest


def publish(
    source: Bundle,
    path: str | os.PathLike[str],
    *,
    signing_key: Ed25519PrivateKey,
    version: int | None = None,
    expires_at: str | None = None,
    adapter: Mapping[str, npt.ArrayLike] | None = None,
) -> Manifest:
    """Publishes a bundle again: newer, signed by ``signing_key``, maybe with another adapter.

    Args:
        source: a loaded bundle; everything that is not named here is kept.
        path: where the new bundle goes; it may not be the source.
        signing_key: the publisher.
        version: the source's plus one by default; it must be greater than the source's. Only an
            unsigned source, which no device accepted, may keep its version, and does by default.
        expires_at: RFC 3339 in UTC; the source's by default.
        adapter: the improved adapter, by name.

    Raises:
        RollbackError: ``version`` is not newer.
        AdapterError: ``adapter`` does not fit the manifest.
    """
    oldest = source.manifest.version + (source.signature is not None)
    version = oldest if version is None else version
    if version < oldest:
        raise RollbackError(
            f"version {version}: the source is version {source.manifest.version}, and devices that "
            f"saw it would refuse this one; use {oldest} or more"
        )
    files: dict[str, Content] = {name: source.entry(name) for name in source.manifest.content_files}
    if adapter is not None:
        files[ADAPTER_FILE] = encode_adapter(check_arrays(adapter, source.manifest.adapter))
    manifest = replace(
        source.manifest,
        version=version,
        created_at=format_time(datetime.now(UTC)),
        expires_at=expires_at or source.manifest.expires_at,
    )
    return write_bundle(path, manifest, files, signing_key)


def encode_adapter(arrays: Arrays) -> bytes:
    """The content of ``adapter.safetensors``."""
    return safetensors.numpy.save(arrays)


def write_archive(path: str | os.PathLike[str], contents: Mapping[str, Content]) -> None:
    """Writes the container alone: entries in the order given, in the canonical encoding."""
    entries: list[ArchiveEntry] = []
    for name, content in contents.items():
        offset = entries[-1].end_offset if entries else 0
        entries.append(ArchiveEntry(name, _crc32(content), _size(content), offset))
    tail = directory(entries) if entries[-1].end_offset < _MAX_ZIP_BYTES else b""
    if not tail or entries[-1].end_offset + len(tail) > _MAX_ZIP_BYTES:
        raise SizeLimitError(f"{path}: a bundle holds at most {_MAX_ZIP_BYTES} bytes")

    def write(file: BinaryIO) -> None:
        for entry in entries:
            file.write(entry.local_header)
            for chunk in _chunks(contents[entry.name]):
                file.write(chunk)
        file.write(tail)

    write_atomically(Path(path), write, mode=0o644)


def _chunks(content: Content) -> Iterator[bytes | memoryview]:
    if not isinstance(content, Path):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _crc32(content: Content) -> int:
    crc32 = 0
    for chunk in _chunks(content):
        crc32 = zlib.crc32(chunk, crc32)
    return crc32


def _file_entry(content: Content) -> FileEntry:
    digest = hashlib.sha256()
    for chunk in _chunks(content):
        digest.update(chunk)
    return FileEntry(sha256=digest.hexdigest(), size=_size(content))
