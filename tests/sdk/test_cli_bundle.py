import argparse
import json
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet.cli_bundle import add_bundle_parser
from rootlet_runtime import Bundle, load_public_key, publish, save_keypair, write_bundle
from rootlet_runtime.signing import public_key_hex

GOOD = Path(__file__).parents[1] / "vectors" / "bundles" / "good.rootlet"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="rootlet")
    add_bundle_parser(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["bundle", *map(str, arguments)])
    code: int = parsed.run(parsed)
    return code


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return save_keypair(tmp_path / "publisher", KEY)


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    return save_keypair(tmp_path / "other", Ed25519PrivateKey.generate())[1]


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    path = tmp_path / "unsigned.rootlet"
    with Bundle.load(GOOD, trusted_keys=[KEY.public_key()]) as bundle:
        files = {name: bundle.entry(name) for name in bundle.manifest.files}
        write_bundle(path, bundle.manifest, files, None)
    return path


def test_show_says_verified(keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", GOOD, "--trusted-key", keys[1]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("VERIFIED")
    assert lines[1].startswith("tiny-softmax version 3")
    assert any("base.bin" in line for line in lines)


def test_show_without_a_key_does_not_say_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", GOOD) == 0
    assert capsys.readouterr().out.startswith("NOT VERIFIED")


def test_show_with_another_key_refuses(other_key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", GOOD, "--trusted-key", other_key) == 1
    assert "UnknownPublisherError" in capsys.readouterr().err


def test_show_is_loud_about_unsigned_bundles(
    unsigned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", unsigned) == 0
    assert capsys.readouterr().out.startswith("UNSIGNED: ANYONE")


@pytest.mark.parametrize("status", ["verified", "untrusted", "unsigned"])
def test_show_as_json(
    status: str, unsigned: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = ["--trusted-key", keys[1]] if status == "verified" else []
    assert run("show", "--json", unsigned if status == "unsigned" else GOOD, *trusted) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verification"], shown["name"]) == (status, "tiny-softmax")


def test_verify_accepts_the_pinned_key_only(
    keys: tuple[Path, Path],
    other_key: Path,
    unsigned: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("verify", GOOD, "--trusted-key", other_key, "--trusted-key", keys[1]) == 0
    assert "VERIFIED" in capsys.readouterr().out
    for arguments, error in (
        ((GOOD, "--trusted-key", other_key), "UnknownPublisherError"),
        ((unsigned, "--trusted-key", keys[1]), "UnsignedError"),
        ((GOOD, "--trusted-key", keys[1], "--minimum-version", 4), "RollbackError"),
        ((GOOD, "--trusted-key", keys[0]), "KeyFileError"),
        ((GOOD.parent / "none", "--trusted-key", keys[1]), "ArchiveError"),
    ):
        assert run("verify", *arguments) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"rootlet: {error}: ")
        assert output.err.count("\n") == 1


def test_verify_needs_a_key() -> None:
    with pytest.raises(SystemExit) as refusal:
        run("verify", GOOD)
    assert refusal.value.code == 2


def test_keygen_then_sign_then_verify(
    unsigned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem, out = tmp_path / "keys" / "me", tmp_path / "signed.rootlet"
    assert run("keygen", "--out", stem) == 0
    private, public = Path(f"{stem}.pem"), Path(f"{stem}.pub.pem")
    assert public_key_hex(load_public_key(public)) in capsys.readouterr().out
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert run("keygen", "--out", stem) == 1
    assert "another name" in capsys.readouterr().err
    assert run("sign", unsigned, "--key", private, "--out", out) == 0
    assert run("verify", out, "--trusted-key", public) == 0


def test_sign_publishes_a_newer_version_with_an_adapter_and_an_expiry(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = {"head.weight": np.ones((3, 6), np.float32), "head.bias": np.ones(3, np.float32)}
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save(adapter))
    out = tmp_path / "new.rootlet"
    options = ("--version", 9, "--expires-in-days", 30, "--adapter", tmp_path / "a.safetensors")
    assert run("sign", GOOD, "--key", keys[0], "--out", out, *options) == 0
    with Bundle.load(out, trusted_keys=[load_public_key(keys[1])]) as bundle:
        assert bundle.manifest.version == 9
        assert (bundle.initial_adapter()["head.bias"] == 1).all()
        assert bundle.manifest.expires_at != "2036-11-01T00:00:00Z"


@pytest.mark.parametrize("days", ["0", "-1", "nan", "1e30", "soon"])
def test_sign_refuses_an_expiry_that_is_no_number_of_days(
    keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    with pytest.raises(SystemExit) as refusal:
        run("sign", GOOD, "--key", keys[0], "--out", tmp_path / "x", "--expires-in-days", days)
    assert refusal.value.code == 2
    assert "is not a number of days in 0..36500" in capsys.readouterr().err


def test_an_expired_bundle_can_be_shown_and_renewed(
    keys: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = tmp_path / "old.rootlet", tmp_path / "new.rootlet"
    monkeypatch.setattr("rootlet_runtime.writer.format_time", lambda _: "2019-01-01T00:00:00Z")
    with Bundle.load(GOOD, trusted_keys=[KEY.public_key()]) as source:
        publish(source, old, signing_key=KEY, expires_at="2020-01-01T00:00:00Z")
    monkeypatch.undo()
    assert run("show", old) == 0
    assert "EXPIRED 2020-01-01" in capsys.readouterr().out
    assert run("verify", old, "--trusted-key", keys[1]) == 1
    assert run("sign", old, "--key", keys[0], "--out", new) == 1
    assert run("sign", old, "--key", keys[0], "--out", new, "--expires-in-days", 1) == 0
    assert run("verify", new, "--trusted-key", keys[1]) == 0


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_sign_refuses_what_is_no_adapter(
    content: bytes, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    out = tmp_path / "new.rootlet"
    options = ("--key", keys[0], "--out", out, "--adapter", tmp_path / "a.safetensors")
    assert run("sign", GOOD, *options) == 1
    assert "AdapterError" in capsys.readouterr().err
    assert not out.exists()
