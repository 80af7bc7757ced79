"""Writes ``bundles/`` and ``bundles/expectations.json``: what every reader of bundles must refuse.

    python tests/vectors/make_bundle_vectors.py

The vectors are for every implementation of the bundle, not only this one: an implementation loads
each file with the given trusted keys and arguments, and either accepts it or refuses it with an
error of the given name.
"""

import hashlib
import json
import runpy
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper

from rootlet_runtime.archive import ArchiveEntry, directory

TESTS = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "bundles"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
NOW = "2027-01-01T00:00:00Z"
BOMB_BYTES = 4_000_000

Entries = list[tuple[str, bytes]]


class Forge:
    """The small bundle in pieces, put together again with one thing wrong."""

    def __init__(self) -> None:
        conftest = runpy.run_path(str(TESTS / "device_runtime" / "conftest.py"))
        manifest, self.files = conftest["make_files"]("sgd")
        self.manifest: dict[str, Any] = json.loads(manifest.to_json())

    def entries(
        self,
        *,
        edit: Callable[[dict[str, Any]], None] = lambda manifest: None,
        files: dict[str, bytes] | None = None,
        key: Ed25519PrivateKey | None = KEY,
        signer: Ed25519PrivateKey | None = None,
        raw_edit: Callable[[bytes], bytes] = lambda raw: raw,
    ) -> Entries:
        """A bundle whose hashes and signature are right for whatever was changed."""
        content = self.files | (files or {})
        manifest = json.loads(json.dumps(self.manifest))
        manifest["publisher"] = key and key.public_key().public_bytes_raw().hex()
        manifest["files"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in content.items()
        }
        edit(manifest)
        raw = raw_edit(json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n")
        signing_key = signer or key
        signature = [("manifest.sig", signing_key.sign(raw))] if signing_key else []
        return [("manifest.json", raw), *signature, *content.items()]

    def with_graph(self, change: Callable[[Any], None], role: str = "predict") -> Entries:
        """A bundle with one graph changed."""
        model = onnx.load_from_string(self.files[f"{role}.onnx"])
        change(model)
        return self.entries(files={f"{role}.onnx": model.SerializeToString()})

    def with_adapter(self, change: Callable[[dict[str, Any]], None]) -> Entries:
        """A bundle with the initial adapter changed."""
        arrays = safetensors.numpy.load(self.files["adapter.safetensors"])
        change(arrays)
        return self.entries(files={"adapter.safetensors": safetensors.numpy.save(arrays)})


def archive(entries: Entries) -> bytes:
    """The canonical encoding, of any names at all."""
    headers: list[ArchiveEntry] = []
    for name, data in entries:
        offset = headers[-1].end_offset if headers else 0
        headers.append(ArchiveEntry(name, zlib.crc32(data), len(data), offset))
    pairs = zip(headers, entries, strict=True)
    return b"".join(h.local_header + data for h, (_, data) in pairs) + directory(headers)


def flip(content: bytes, position: int, bit: int = 1) -> bytes:
    """One bit of one byte changed."""
    changed = bytearray(content)
    changed[position] ^= bit
    return bytes(changed)


def compressed(name: str) -> bytes:
    """An archive with one entry that grows a thousandfold when it is read."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(BOMB_BYTES)) + packer.flush()
    plain = archive([(name, packed)])
    for signature, method, size in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        start = plain.index(signature)
        plain = _patch(plain, start + method, (8).to_bytes(2, "little"))
        plain = _patch(plain, start + size, BOMB_BYTES.to_bytes(4, "little"))
    return plain


def flagged(content: bytes, flags: int) -> bytes:
    """The first entry's general purpose flags set in both headers."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content = _patch(content, content.index(signature) + offset, flags.to_bytes(2, "little"))
    return content


def _patch(content: bytes, position: int, value: bytes) -> bytes:
    return content[:position] + value + content[position + len(value) :]


def archive_vectors(forge: Forge) -> dict[str, tuple[str, bytes]]:
    """Faults of the container."""
    entries = forge.entries()
    good = archive(entries)

    def extra(name: str) -> bytes:
        return archive([*entries, (name, b"x")])

    end = good.index(b"PK\x05\x06")
    return {
        "empty_file": ("ArchiveError", b""),
        "not_a_zip": ("ArchiveError", b"GIF89a" * 100),
        "truncated": ("ArchiveError", good[:-500]),
        "trailing_byte": ("ArchiveError", good + b"\0"),
        "leading_byte": ("ArchiveError", b"\0" + good),
        "comment": ("ArchiveError", good[:-2] + b"\x01\x00x"),
        "compressed_bomb": ("ArchiveError", compressed("base.bin")),
        "encrypted": ("ArchiveError", flagged(good, 1)),
        "other_flags": ("ArchiveError", flagged(good, 8)),
        "duplicate_entry": ("ArchiveError", archive([*entries, entries[-1]])),
        "header_flip": ("ArchiveError", flip(good, 10)),
        "padding_flip": ("ArchiveError", flip(good, len("manifest.json") + 30 + 8)),
        "directory_flip": ("ArchiveError", flip(good, end - 20)),
        "overlap": ("ArchiveError", _overlapping(good)),
        "too_many_entries": ("SizeLimitError", archive([(f"e{i}", b"") for i in range(17)])),
        "parent_path": ("UnsafePathError", extra("../evil")),
        "absolute_path": ("UnsafePathError", extra("/etc/passwd")),
        "backslash_path": ("UnsafePathError", extra("..\\evil")),
        "folder": ("UnsafePathError", extra("weights/")),
        "nested_path": ("UnsafePathError", extra("weights/base.bin")),
        "nul_in_name": ("UnsafePathError", extra("base.bin\0")),
        "dots_only": ("UnsafePathError", extra("..")),
        "empty_name": ("UnsafePathError", extra("")),
        "no_manifest": ("MissingFileError", archive(entries[1:])),
        "missing_file": ("MissingFileError", archive(entries[:-1])),
        "extra_file": ("ExtraFileError", extra("notes.txt")),
    }


def _overlapping(good: bytes) -> bytes:
    """The second entry said to begin where the first does."""
    second = good.index(b"PK\x01\x02", good.index(b"PK\x01\x02") + 1)
    return _patch(good, second + 42, bytes(4))


def signature_vectors(forge: Forge) -> dict[str, tuple[str, bytes]]:
    """Faults of identity and content."""
    entries = forge.entries()
    named = dict(entries)
    unsigned = forge.entries(key=None)

    def replaced(name: str, data: bytes) -> bytes:
        return archive([(n, data if n == name else d) for n, d in entries])

    flips = {
        f"{name.replace('.', '_')}_flip": (
            "HashMismatchError",
            replaced(name, flip(named[name], len(named[name]) // 2)),
        )
        for name in forge.files
    }
    return flips | {
        "manifest_flip": ("SignatureError", replaced("manifest.json", flip(entries[0][1], 40))),
        "signature_flip": ("SignatureError", replaced("manifest.sig", flip(entries[1][1], 5))),
        "signature_short": ("SignatureError", replaced("manifest.sig", entries[1][1][:63])),
        "signature_other_key": ("SignatureError", archive(forge.entries(signer=OTHER_KEY))),
        "unknown_publisher": ("UnknownPublisherError", archive(forge.entries(key=OTHER_KEY))),
        "unsigned": ("UnsignedError", archive(unsigned)),
        "signature_stripped": ("UnsignedError", archive([entries[0], *entries[2:]])),
        "publisher_absent": ("SignatureError", archive(forge.entries(key=None, signer=KEY))),
        "size_differs": ("HashMismatchError", replaced("base.bin", named["base.bin"] + b"\0")),
    }


def manifest_vectors(forge: Forge) -> dict[str, tuple[str, bytes]]:
    """Signed manifests that say something impossible or unknown."""

    def edited(**changes: Any) -> bytes:
        return archive(forge.entries(edit=lambda manifest: manifest.update(changes)))

    def raw(old: bytes, new: bytes) -> bytes:
        return archive(forge.entries(raw_edit=lambda text: text.replace(old, new, 1)))

    faults = {
        "unknown_field": edited(privacy_floor=1),
        "other_schema": edited(schema=2),
        "version_zero": edited(version=0),
        "version_is_text": edited(version="3"),
        "version_is_true": edited(version=True),
        "name_with_slash": edited(name="../tiny"),
        "rank_negative": edited(rank=-1),
        "max_batch_huge": edited(max_batch=10**9),
        "labels_too_few": edited(labels=["a"]),
        "time_without_zone": edited(created_at="2026-11-01T00:00:00"),
        "duplicate_key": raw(b'"alpha": 1.0', b'"alpha": 1.0, "alpha": 2.0'),
        "nan": raw(b'"alpha": 1.0', b'"alpha": NaN'),
        "not_json": raw(b"{", b"["),
        "deep_json": raw(b'"extensions": {}', b'"extensions": ' + b"[" * 5000 + b"]" * 5000),
        "graph_file_renamed": edited(
            graphs=forge.manifest["graphs"]
            | {"predict": forge.manifest["graphs"]["predict"] | {"file": "train.onnx"}}
        ),
        "adapter_shape_differs": archive(
            forge.with_adapter(lambda a: a.update({"head.bias": np.zeros(4, np.float32)}))
        ),
        "adapter_tensor_missing": archive(forge.with_adapter(lambda a: a.pop("head.bias"))),
        "adapter_not_finite": archive(forge.with_adapter(lambda a: a["head.bias"].fill(np.nan))),
        "adapter_float64": archive(
            forge.with_adapter(lambda a: a.update({"head.bias": np.zeros(3, np.float64)}))
        ),
        "adapter_not_safetensors": archive(
            forge.entries(files={"adapter.safetensors": b"PK" * 50})
        ),
    }
    return {f"manifest_{name}": ("ManifestError", content) for name, content in faults.items()}


def graph_vectors(forge: Forge) -> dict[str, tuple[str, bytes]]:
    """Signed graphs that ask for something a bundle may not do."""

    def graph(change: Callable[[Any], None]) -> bytes:
        return archive(forge.with_graph(change))

    def projection(model: Any) -> Any:
        return next(t for t in model.graph.initializer if t.name == "P")

    def external(key: str, value: str) -> bytes:
        def change(model: Any) -> None:
            entry = next(e for e in projection(model).external_data if e.key == key)
            entry.value = value

        return graph(change)

    def custom_domain(model: Any) -> None:
        model.graph.node[0].domain = "com.example"

    def custom_import(model: Any) -> None:
        model.opset_import.append(helper.make_opsetid("com.example", 1))

    def subgraph(model: Any) -> None:
        body = helper.make_graph([], "body", [], [])
        model.graph.node[0].attribute.append(helper.make_attribute("body", body))

    def local_function(model: Any) -> None:
        node = helper.make_node("Tanh", ["a"], ["b"])
        opsets = [helper.make_opsetid("", 20)]
        model.functions.append(helper.make_function("", "Tanh", ["a"], ["b"], [node], opsets))

    def sparse(model: Any) -> None:
        model.graph.sparse_initializer.add()

    def constant_outside(model: Any) -> None:
        tensor = TensorProto()
        tensor.CopyFrom(projection(model))
        node = helper.make_node("Constant", [], ["other"], value=tensor)
        model.graph.node.insert(0, node)

    def batch(model: Any) -> Any:
        return model.graph.input[0].type.tensor_type.shape.dim[0]

    def input_size(model: Any) -> Any:
        return model.graph.input[0].type.tensor_type.shape.dim[1]

    def more_rows(model: Any) -> None:
        projection(model).dims[0] = 8

    faults = {
        "custom_domain": graph(custom_domain),
        "custom_import": graph(custom_import),
        "random_operator": graph(lambda m: setattr(m.graph.node[0], "op_type", "RandomNormalLike")),
        "loop_operator": graph(lambda m: setattr(m.graph.node[0], "op_type", "Loop")),
        "subgraph": graph(subgraph),
        "local_function": graph(local_function),
        "sparse_initializer": graph(sparse),
        "external_elsewhere": external("location", "/etc/passwd"),
        "external_parent": external("location", "../base.bin"),
        "external_beyond": external("offset", "1000000"),
        "external_negative": external("offset", "-64"),
        "external_unaligned": external("offset", "62"),
        "external_length": external("length", "4"),
        "external_in_attribute": graph(constant_outside),
        "shape_beyond": graph(more_rows),
        "old_opset": graph(lambda m: setattr(m.opset_import[0], "version", 9)),
        "input_renamed": graph(lambda m: setattr(m.graph.input[0], "name", "z")),
        "input_missing": graph(lambda m: m.graph.input.pop()),
        "input_dtype": graph(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 11)),
        "input_rank": graph(lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1)),
        "input_size": graph(lambda m: setattr(input_size(m), "dim_value", 5)),
        "input_closed": graph(lambda m: setattr(batch(m), "dim_value", 1)),
        "output_extra": graph(lambda m: m.graph.output.append(m.graph.output[0])),
        "graph_twice": archive(
            forge.entries(files={"predict.onnx": forge.files["predict.onnx"] * 2})
        ),
        "not_protobuf": archive(forge.entries(files={"predict.onnx": b"\xff" * 64})),
        "empty_graph": archive(forge.entries(files={"predict.onnx": b""})),
    }
    return {f"graph_{name}": ("OperatorError", content) for name, content in faults.items()}


def main() -> None:
    """Writes the folder anew."""
    forge = Forge()
    good = archive(forge.entries())
    vectors: dict[str, tuple[str | None, bytes]] = {"good": (None, good)}
    for group in (archive_vectors, signature_vectors, manifest_vectors, graph_vectors):
        vectors |= group(forge)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    cases: list[dict[str, Any]] = []
    for name, (error, content) in vectors.items():
        (FOLDER / f"{name}.rootlet").write_bytes(content)
        cases.append({"case": name, "file": f"{name}.rootlet", "error": error, "arguments": {}})
    for name, error, arguments in (
        ("older_version", "RollbackError", {"minimum_version": 4}),
        ("same_version", None, {"minimum_version": 3}),
        ("expired", "ExpiredError", {"now": "2036-11-01T00:00:00Z"}),
        ("last_second", None, {"now": "2036-10-31T23:59:59Z"}),
        ("no_trusted_key", "UnknownPublisherError", {"trusted_keys": []}),
        ("over_limit", "SizeLimitError", {"limits": {"max_bundle_bytes": 4096}}),
        ("graph_over_limit", "SizeLimitError", {"limits": {"max_graph_bytes": 256}}),
        ("state_over_limit", "SizeLimitError", {"limits": {"max_state_bytes": 80}}),
    ):
        cases.append({"case": name, "file": "good.rootlet", "error": error, "arguments": arguments})
    expectations = {
        "trusted_keys": [KEY.public_key().public_bytes_raw().hex()],
        "now": NOW,
        "minimum_version": 0,
        "cases": cases,
    }
    (FOLDER / "expectations.json").write_text(json.dumps(expectations, indent=1) + "\n")


if __name__ == "__main__":
    main()
