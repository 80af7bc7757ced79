"""The ledger: what it notices, what a crash leaves, and its command line."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from rootlet.errors import LedgerError
from rootlet.ledger import FILE, GENESIS, HEAD, Head, Ledger, read, verify
from rootlet_server.cli import main

WRITER = """
import sys
from pathlib import Path
from rootlet.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
while True:
    entry = ledger.append("update", bytes=12345, tensors=["a" * 200])
    print(entry.number, flush=True)
"""


@pytest.fixture
def three(tmp_path):
    """A folder with a ledger of three entries."""
    ledger = Ledger(tmp_path)
    for number in (1, 2, 3):
        ledger.append("update", round=number, tensors=["head.weight"], note="größer")
    return tmp_path


def lines(folder):
    return (folder / FILE).read_text(encoding="utf-8").splitlines(keepends=True)


def rewrite(folder, changed):
    (folder / FILE).write_text("".join(changed), encoding="utf-8")


def test_the_hash_by_hand(tmp_path):
    entry = Ledger(tmp_path).append("update", b=[1, "ü"], a=0.5)
    text = f'{{"a":0.5,"b":[1,"ü"],"kind":"update","number":1,"time":"{entry.time}"}}'
    assert entry.previous == GENESIS == "0" * 64
    assert entry.hash == hashlib.sha256(f"{GENESIS}\n{text}".encode()).hexdigest()
    assert json.loads(lines(tmp_path)[0])["hash"] == entry.hash


def test_it_goes_on_where_it_ended(three):
    ledger = Ledger(three)
    last = read(three)[-1]
    assert ledger.head == Head(3, last.hash) == verify(three)
    assert ledger.append("metrics").previous == last.hash
    assert [entry.kind for entry in read(three)] == ["update"] * 3 + ["metrics"]


def changed(text):
    return [text[0], text[1].replace('"round": 2', '"round": 9'), text[2]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed, "line 2: its hash is not that of its content"),
        (lambda t: [t[0], t[2]], "line 2: number 3 after 1 does not follow"),
        (lambda t: [t[1], t[0], t[2]], "line 1: number 2 after 0"),
        (lambda t: [*t, t[2]], "line 4: number 3 after 3"),
        (lambda t: t[:1], "ends with line 1, and ledger.head says 3"),
        (lambda t: [t[0], "{}\n", t[2]], "line 2 is not an entry"),
        (lambda t: [], "ends with line 0, and ledger.head says 3"),
        (lambda t: [*t[:2], t[2][:-9]], "ends with line 2, and ledger.head says 3"),
    ],
    ids=[
        "changed",
        "removed",
        "moved",
        "repeated",
        "cut off",
        "overwritten",
        "emptied",
        "cut in a line",
    ],
)
def test_what_was_done_to_it_is_noticed(three, edit, message):
    rewrite(three, edit(lines(three)))
    evidence = (three / FILE).read_bytes()
    for use in (verify, Ledger):
        with pytest.raises(LedgerError, match=message):
            use(three)
    assert (three / FILE).read_bytes() == evidence


def test_a_forged_ledger_is_noticed_by_a_head_kept_elsewhere(three, tmp_path):
    known = verify(three)
    (three / FILE).unlink()
    (three / HEAD).unlink()
    forged = Ledger(three)
    for _ in range(5):
        forged.append("update")
    verify(three)  # whole in itself
    with pytest.raises(LedgerError, match="line 3 is not the one that the known head names"):
        verify(three, known=known)


def test_a_missing_or_damaged_head(three):
    (three / HEAD).write_bytes(b"{}")
    with pytest.raises(LedgerError, match=r"ledger\.head is damaged"):
        verify(three)
    (three / HEAD).unlink()
    with pytest.raises(LedgerError, match=r"is missing and .* has 3 lines"):
        verify(three)


def test_what_a_crash_leaves_is_mended_and_said(three):
    before = (three / HEAD).read_bytes()
    Ledger(three).append("metrics")
    (three / HEAD).write_bytes(before)  # between the line and the head
    assert Ledger(three).head.number == 4
    with (three / FILE).open("a") as file:
        file.write('{"number": 5, "ti')
    assert verify(three).number == 4
    ledger = Ledger(three)
    last = read(three)[-1]
    assert (ledger.head.number, last.kind) == (5, "repaired")
    assert last.fields == {"bytes_of_an_unfinished_line": 17}


def test_killed_at_any_moment_it_lacks_nothing_that_was_acknowledged(tmp_path):
    for delay in (0.0, 0.002, 0.005, 0.01):
        command = [sys.executable, "-c", WRITER, tmp_path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            acknowledged = [writer.stdout.readline() for _ in range(5)]
            time.sleep(delay)
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += writer.stdout.readlines()
        last = int([line for line in acknowledged if line.endswith("\n")][-1])
        assert Ledger(tmp_path).head.number >= last


def test_a_full_disk_is_an_error_and_changes_nothing(three):
    ledger, whole = Ledger(three), verify(three)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((three / FILE).stat().st_size + 40, hard))
        with pytest.raises(LedgerError, match="make room"):
            ledger.append("update", tensors=["x" * 500])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert verify(three) == whole
    assert ledger.append("update").number == 4


def test_a_field_may_not_stand_in_for_the_ledgers_own(three):
    with pytest.raises(ValueError, match=r"\['hash'\] are the ledger's own"):
        Ledger(three).append("update", hash="0")


def test_the_command_line(three, tmp_path, capsys):
    def run(*arguments):
        code = main(["ledger", *map(str, arguments), "--state-dir", str(three)])
        return code, capsys.readouterr()

    code, said = run("show", "--last", 2)
    assert (code, len(said.out.splitlines())) == (0, 2)
    assert "update" in said.out
    assert "tensors=head.weight" in said.out
    out = tmp_path / "kept.jsonl"
    code, said = run("export", "--out", out)
    head = said.out.split()[-1]
    assert (code, out.read_text(encoding="utf-8")) == (0, "".join(lines(three)))
    assert run("verify", "--known", head)[0] == 0
    assert run("verify", "--known", "3:ab")[0] == 2
    rewrite(three, changed(lines(three)))
    code, said = run("verify")
    assert code == 1
    assert "line 2" in said.err
