"""The encrypted store: what is refused, what a crash may leave, and what erasing leaves."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.erasure import erase_examples
from rootlet.errors import ConfigError, KeystoreError, StoreError
from rootlet.secret_keys import UnsealError
from rootlet.segment import RecordFormat
from rootlet.store import ExampleStore, is_held_out
from rootlet.vault import open_vault
from rootlet_runtime.manifest import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(None, 3))
Y = TensorSpec(name="y", dtype="int64", shape=(None,))
RECORD_BYTES = 12 + (4 + 8 + 12 + 8) + 16  # nonce, time, counter, x, y, tag
CAPACITY, PER_SEGMENT = 40, 5
DAY_S = 86400.0


def open_store(state, x=X, **options):
    state.mkdir(exist_ok=True)
    vault = open_vault(state, "file")
    options = {"capacity": CAPACITY, "sync_interval_s": 0.0} | options
    return ExampleStore(state / "examples", x, Y, vault=vault, **options)


def fill(store, numbers, *, at_once=True):
    for number in numbers:
        store.observe(np.full(3, number, np.float32), np.int64(number % 7))
        if not at_once:
            store.flush()
    store.flush()


def kept(store):
    found = []
    for x, y in (store.train(), store.holdout()):
        np.testing.assert_array_equal(y, x[:, 0].astype(np.int64) % 7)
        found += x[:, 0].astype(int).tolist()
    return sorted(found)


def found_in(state):
    """What a client would learn from; nothing may be given where something is refused."""
    store = open_store(state)
    try:
        return kept(store), store.notes
    finally:
        store.close()


def segments(state):
    return sorted((state / "examples").glob("*.sealed"))


def header_bytes(path):
    return len(path.read_bytes()) % RECORD_BYTES or RECORD_BYTES


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store of 23 examples in five segments, and older copies of it after each five."""
    folder = tmp_path_factory.mktemp("filled")
    store = open_store(folder / "state")
    for number in range(23):
        fill(store, [number])
        if number % 5 == 3:
            shutil.copytree(folder / "state", folder / f"after{number + 1}")
    store.close()
    assert len(segments(folder / "state")) == 5
    return folder


@pytest.fixture
def copy(filled, tmp_path_factory):
    def copy_(name="state"):
        place = tmp_path_factory.mktemp("copy") / "state"
        return shutil.copytree(filled / name, place)

    return copy_


def test_examples_come_back_after_a_restart(copy):
    state = copy()
    assert found_in(state) == (list(range(23)), ())
    store = open_store(state)
    train = store.train()[0][:, 0].astype(int).tolist()
    assert train == [number for number in range(23) if not is_held_out(number, 5)]
    fill(store, range(23, 60))
    assert kept(store) == list(range(20, 60))
    store.close()


def test_a_record_on_the_disk_has_the_size_that_the_specification_says(copy):
    state = copy()
    whole, last = segments(state)[0], segments(state)[-1]
    expected = PER_SEGMENT * RECORD_BYTES
    header = whole.stat().st_size - expected
    assert last.stat().st_size == header + 3 * RECORD_BYTES
    schema = len(RecordFormat(X, Y).header)
    assert header == len(b"rootlet sealed segment 1\n") + 8 + 32 + schema


def test_the_raw_folder_holds_no_example(tmp_path):
    secret = np.frombuffer(b"a secret in three floats"[:12], np.float32)
    for state, keystore in ((tmp_path / "plain", None), (tmp_path / "sealed", "file")):
        state.mkdir()
        vault = open_vault(state, keystore)
        store = ExampleStore(state / "examples", X, Y, vault=vault)
        store.observe(secret, np.int64(1))
        store.close()
    raw = {
        name: b"".join(p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file())
        for name in ("plain", "sealed")
    }
    assert secret.tobytes() in raw["plain"]  # the search finds what is there
    assert secret.tobytes() not in raw["sealed"]
    assert secret.tobytes()[:6] not in raw["sealed"]


# -- what is refused ------------------------------------------------------------------------------


def swap(path, first, second, length, other=None):
    """Exchanges two runs of bytes in one file, or between two."""
    other = other or path
    a, b = bytearray(path.read_bytes()), bytearray(other.read_bytes())
    one, two = bytes(a[first : first + length]), bytes(b[second : second + length])
    if path == other:
        a[first : first + length], a[second : second + length] = two, one
        path.write_bytes(a)
        return
    a[first : first + length], b[second : second + length] = two, one
    path.write_bytes(a)
    other.write_bytes(b)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_refused(filled, data, tmp_path_factory):
    state = shutil.copytree(filled / "state", tmp_path_factory.mktemp("flip") / "state")
    path = data.draw(st.sampled_from([*segments(state), state / "examples" / "head"]))
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with pytest.raises(StoreError):
        found_in(state)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_records_moved_within_or_between_segments_are_refused(filled, data, tmp_path_factory):
    state = shutil.copytree(filled / "state", tmp_path_factory.mktemp("move") / "state")
    places = [(path, n) for path in segments(state)[:4] for n in range(PER_SEGMENT)]
    (one, first), (two, second) = data.draw(
        st.lists(st.sampled_from(places), min_size=2, max_size=2, unique=True)
    )
    header = one.stat().st_size - PER_SEGMENT * RECORD_BYTES
    swap(
        one, header + first * RECORD_BYTES, header + second * RECORD_BYTES, RECORD_BYTES, other=two
    )
    with pytest.raises(StoreError, match=r"was changed, moved or cut off.*evidence"):
        found_in(state)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_truncation_is_refused(filled, data, tmp_path_factory):
    state = shutil.copytree(filled / "state", tmp_path_factory.mktemp("cut") / "state")
    path = data.draw(st.sampled_from([*segments(state), state / "examples" / "head"]))
    os.truncate(path, data.draw(st.integers(0, path.stat().st_size - 1)))
    with pytest.raises(StoreError):
        found_in(state)


@pytest.mark.parametrize("place", range(5))
def test_a_removed_segment_is_refused(copy, place):
    state = copy()
    segments(state)[place].unlink()
    with pytest.raises(StoreError, match="which is missing"):
        found_in(state)


def test_segments_that_changed_names_are_refused(copy):
    state = copy()
    one, two = segments(state)[:2]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(StoreError, match="an older file was put in its place"):
        found_in(state)


def test_an_older_version_of_a_segment_is_refused(filled, copy):
    state = copy()
    older = segments(filled / "after19")[-1]
    assert older.name == segments(state)[3].name
    shutil.copy(older, segments(state)[3])
    with pytest.raises(StoreError, match="bytes are cut off"):
        found_in(state)


def test_a_head_without_segments_and_segments_without_a_head_are_refused(copy):
    state = copy()
    head = state / "examples" / "head"
    content = head.read_bytes()
    head.unlink()
    with pytest.raises(StoreError, match="head is missing"):
        found_in(state)
    head.write_bytes(content)
    for path in segments(state):
        path.unlink()
    with pytest.raises(StoreError, match="which is missing"):
        found_in(state)


@pytest.mark.parametrize("age", [4, 9, 14, 19])
def test_an_older_head_before_newer_segments_is_refused(filled, copy, age):
    state = copy()
    shutil.copy(filled / f"after{age}" / "examples" / "head", state / "examples" / "head")
    with pytest.raises(StoreError, match=r"does not know .*: it is an older one"):
        found_in(state)


def test_a_retired_segment_that_is_put_back_is_removed(filled, copy):
    state = copy()
    store = open_store(state)
    fill(store, range(23, 80))
    store.close()
    first = segments(filled / "state")[0]
    shutil.copy(first, state / "examples" / first.name)
    assert found_in(state) == (list(range(40, 80)), ())
    assert not (state / "examples" / first.name).exists()


def test_a_plain_segment_that_is_put_there_is_refused(copy, tmp_path):
    state = copy()
    planted = ExampleStore(tmp_path / "planted", X, Y)
    planted.observe(np.full(3, 666, np.float32), np.int64(1))
    planted.close()
    for path in planted.directory.glob("*.segment"):
        shutil.copy(path, state / "examples")
    with pytest.raises(StoreError, match="is not sealed, and the examples in"):
        found_in(state)


def test_a_refused_store_begins_anew_after_erasing(copy):
    state = copy()
    os.truncate(segments(state)[-1], 10)
    with pytest.raises(StoreError):
        found_in(state)
    erase_examples(state)
    store = open_store(state)
    fill(store, [1, 2])
    store.close()
    assert found_in(state) == ([1, 2], ())


def test_another_bundle_s_shapes_are_refused_with_a_remedy(copy):
    wider = TensorSpec(name="x", dtype="float32", shape=(None, 4))
    with pytest.raises(StoreError, match=r"another shape or dtype.*erase"):
        open_store(copy(), wider)


def test_another_key_opens_nothing(copy, tmp_path):
    other = tmp_path / "other"
    open_store(other).close()
    shutil.copytree(copy() / "examples", other / "examples", dirs_exist_ok=True)
    with pytest.raises(StoreError, match="is sealed with another key"):
        found_in(other)
    state = copy()
    (state / "vault.key").unlink()
    with pytest.raises(KeystoreError, match="its key is not in the file key store"):
        open_store(state)


# -- what a crash may leave -----------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import numpy as np
from rootlet.store import ExampleStore
from rootlet.vault import open_vault
from rootlet_runtime.manifest import TensorSpec
x = TensorSpec(name="x", dtype="float32", shape=(None, 3))
y = TensorSpec(name="y", dtype="int64", shape=(None,))
state, number = Path(sys.argv[1]), int(sys.argv[2])
store = ExampleStore(
    state / "examples", x, y, vault=open_vault(state, "file"), capacity=40, sync_interval_s=0.0
)
assert not [note for note in store.notes if "torn" not in note], store.notes
print("open", flush=True)
while True:
    for _ in range(int(sys.argv[3])):
        store.observe(np.full(3, number, np.float32), np.int64(number % 7))
        number += 1
    store.flush()
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_nothing_durable_and_raises_no_alarm(tmp_path):
    rng, following = np.random.default_rng(20), 0
    for run in range(24):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(following), str(rng.integers(1, 10))],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout.readline() == "open\n", run
            process.stdout.readline()
            try:
                process.wait(rng.uniform(0.0, 0.05))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split("\n")[:-1]
        flushed = max(map(int, lines), default=following)
        numbers, notes = found_in(tmp_path)
        assert all("torn" in note for note in notes), run
        assert numbers[-1] >= flushed - 1, run
        assert numbers == list(range(max(0, numbers[-1] - CAPACITY + 1), numbers[-1] + 1)), run
        following = numbers[-1] + 1
    assert following > 100


CALLS = ("fsync", "ftruncate", "open", "pwrite", "replace", "unlink")
AT_EACH_CALL = """
import os, shutil, sys
from pathlib import Path
import numpy as np
from rootlet.store import ExampleStore
from rootlet.vault import open_vault
from rootlet_runtime.manifest import TensorSpec
x = TensorSpec(name="x", dtype="float32", shape=(None, 3))
y = TensorSpec(name="y", dtype="int64", shape=(None,))
folder, work = Path(sys.argv[1]), sys.argv[2]

def opened(state):
    vault = open_vault(state, "file")
    return ExampleStore(state / "examples", x, y, vault=vault, capacity=40, sync_interval_s=0.0)

def fill(store, first, last):
    for number in range(first, last):
        store.observe(np.full(3, number, np.float32), np.int64(number % 7))
    store.close()

def kept(store):
    return sorted(int(v) for part in (store.train(), store.holdout()) for v in part[0][:, 0])

begun = folder / "begun"
begun.mkdir()
if work != "begin":
    fill(opened(begun), 0, 37)
fill_to = {"begin": 12, "append": 49, "erase": 37}[work]
crashes = 0
while True:
    state = folder / f"crash{crashes}"
    shutil.copytree(begun, state)
    child = os.fork()
    if child == 0:
        left = crashes
        def dying(call):
            def wrapped(*arguments, **options):
                global left
                if left == 0:
                    os.kill(os.getpid(), 9)
                left -= 1
                return call(*arguments, **options)
            return wrapped
        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        store = opened(state)
        if work == "erase":
            store.erase()
        else:
            fill(store, 37 if work == "append" else 0, fill_to)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    store = opened(state)  # no alarm
    numbers = kept(store)
    assert all("torn" in note for note in store.notes), store.notes
    if work == "erase":
        assert numbers in ([], list(range(37))), numbers
    else:
        last = numbers[-1] if numbers else -1
        assert numbers == list(range(max(0, last - 39), last + 1)), numbers
        assert work == "begin" or last >= 36
    store.close()
    fill(opened(state), 100, 103)
    assert kept(opened(state))[-3:] == [100, 101, 102]
    if status == 0:
        expected = [] if work == "erase" else list(range(max(0, fill_to - 40), fill_to))
        assert numbers == expected, numbers
        break
    assert os.WTERMSIG(status) == 9
    crashes += 1
print(crashes)
"""


@pytest.mark.parametrize(("work", "least"), [("begin", 25), ("append", 20), ("erase", 15)])
def test_a_crash_before_each_call_of_the_system_is_recovered_from(tmp_path, work, least):
    script = AT_EACH_CALL.replace("CALLS", repr(CALLS))
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path, work],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= least


@pytest.mark.parametrize("torn", [1, 40, RECORD_BYTES - 1])
def test_what_was_written_beyond_the_head_is_taken_if_it_is_whole(copy, torn):
    """The crash between records and head, made by hand."""
    state = copy()
    head = (state / "examples" / "head").read_bytes()
    store = open_store(state)
    fill(store, [23, 24])
    store.close()
    (state / "examples" / "head").write_bytes(head)
    last = segments(state)[-1]
    os.truncate(last, last.stat().st_size - torn)
    numbers, notes = found_in(state)
    assert numbers == list(range(24))
    assert notes == (f"{last.name}: cut {RECORD_BYTES - torn} torn bytes off its end",)
    store = open_store(state)
    fill(store, [24, 25, 26])
    assert kept(store) == list(range(27))
    store.close()
    assert found_in(state) == (list(range(27)), ())


def test_a_torn_new_segment_is_begun_anew(copy):
    state = copy()
    (state / "examples" / f"{23:020d}.sealed").write_bytes(bytes(300))
    numbers, notes = found_in(state)
    assert numbers == list(range(23))
    assert "torn bytes" in notes[0]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open", "replace"])
def test_a_full_disk_is_reported_and_nothing_is_lost_when_it_has_room_again(
    tmp_path, monkeypatch, call
):
    store = open_store(tmp_path)
    fill(store, range(4))
    real, full = getattr(os, call), True

    def failing(*arguments, **options):
        if full and str(arguments[0]) != "/dev/null":
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, failing)
    for number in range(4, 12):
        store.observe(np.full(3, number, np.float32), np.int64(number % 7))
    with pytest.raises(StoreError, match=r"No space left on device.*free some space"):
        store.flush()
    full = False
    store.flush()
    assert kept(store) == list(range(12))
    store.close()
    assert found_in(tmp_path) == (list(range(12)), ())


def test_a_disk_that_is_full_on_opening_is_a_store_error(tmp_path, monkeypatch):
    vault = open_vault(tmp_path, "file")

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot be opened.*free some space"):
        ExampleStore(tmp_path / "examples", X, Y, vault=vault)


# -- erasing --------------------------------------------------------------------------------------


def test_erasing_leaves_nothing_that_any_key_left_can_open(copy):
    state = copy()
    old = {path.name: path.read_bytes() for path in (state / "examples").iterdir()}
    old_key = json.loads(json.loads((state / "vault.key").read_bytes())["secret"])["examples"]
    store = open_store(state)
    fill(store, [23])
    store.observe(np.full(3, 24, np.float32), np.int64(3))
    store.erase()
    assert kept(store) == []
    assert segments(state) == []
    store.close()
    raw = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert old_key.encode() not in raw
    for number in range(25):
        assert np.full(3, number, np.float32).tobytes() not in raw or number == 0
    vault = open_vault(state, "file")
    with pytest.raises(UnsealError, match="another key"):
        vault.unseal("examples", "head", "head", old["head"])
    for name, content in old.items():  # somebody had copied them, or the medium kept the blocks
        (state / "examples" / name).write_bytes(content)
    assert found_in(state) == ([], ())  # leftovers of the erased key are removed
    assert [path.name for path in (state / "examples").iterdir()] == ["head"]


def test_an_erased_store_goes_on_under_its_new_key(copy):
    state = copy()
    store = open_store(state)
    for _ in range(3):
        store.erase()
        fill(store, [7, 8, 9])
        assert kept(store) == [7, 8, 9]
    store.close()
    assert found_in(state) == ([7, 8, 9], ())


# -- retention and quota --------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [True, False])
def test_examples_older_than_the_retention_are_never_given_and_leave_the_disk(tmp_path, sealed):
    now = [1000 * DAY_S]
    vault = open_vault(tmp_path, "file") if sealed else None

    def opened():
        return ExampleStore(
            tmp_path / "examples",
            X,
            Y,
            vault=vault,
            retention_days=8,
            sync_interval_s=0.0,
            clock=lambda: now[0],
        )

    def on_disk():
        record = RECORD_BYTES if sealed else RecordFormat(X, Y).dtype.itemsize
        paths = (tmp_path / "examples").glob("*.s*e*")
        return sum(path.stat().st_size // record for path in paths)

    store = opened()
    for day in range(30):
        fill(store, [day])
        assert kept(store) == list(range(max(0, day - 8), day + 1))
        # An eighth more, an example's time is whole seconds, and headers round up in segments.
        assert len(store) <= 8 + 1 + 1 + 1
        now[0] += DAY_S
    assert kept(store) == list(range(22, 30))
    now[0] += 7 * DAY_S
    store.expire()
    assert kept(store) == [29]
    now[0] += 2 * DAY_S
    store.expire()
    assert (kept(store), len(store)) == ([], 0)
    raw = b"".join(path.read_bytes() for path in (tmp_path / "examples").iterdir())
    assert np.full(3, 29, np.float32).tobytes() not in raw
    store.close()
    store = opened()
    fill(store, [77])
    train, holdout = store.train()[0], store.holdout()[0]
    assert (len(holdout) == 1) is is_held_out(30, 5)  # numbering went on
    assert len(train) + len(holdout) == 1
    store.close()


def test_what_expired_while_nothing_ran_is_gone_at_the_next_opening(tmp_path):
    vault = open_vault(tmp_path, "file")
    options = {"vault": vault, "sync_interval_s": 0.0}
    store = ExampleStore(tmp_path / "examples", X, Y, **options, clock=lambda: 1e9)
    fill(store, range(5))
    store.close()
    later = ExampleStore(
        tmp_path / "examples", X, Y, **options, clock=lambda: 1e9 + 2 * DAY_S, retention_days=1
    )
    assert len(later) == 0
    header = segments(tmp_path)[0].stat().st_size
    assert len(segments(tmp_path)) == 1
    assert header < 200
    later.close()


def bytes_in(folder):
    """Of all files; one that goes away meanwhile is not there."""
    size = 0
    for path in list(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


@pytest.mark.parametrize("sealed", [True, False])
@settings(max_examples=15, deadline=None)
@given(quota=st.integers(21_000, 60_000), counts=st.lists(st.integers(1, 400), max_size=4))
def test_all_files_together_stay_within_the_quota(tmp_path_factory, sealed, quota, counts):
    state, total = tmp_path_factory.mktemp("quota"), 0
    vault = open_vault(state, "file") if sealed else None
    for count in counts:
        store = ExampleStore(
            state / "examples",
            X,
            Y,
            vault=vault,
            quota_bytes=quota,
            sync_interval_s=0.0,
        )
        for number in range(total, total + count):
            store.observe(np.full(3, number, np.float32), np.int64(number % 7))
            assert bytes_in(state / "examples") <= quota
        total += count
        store.flush()
        assert kept(store) == list(range(max(0, total - store.capacity), total))
        store.close()
        assert bytes_in(state / "examples") <= quota


def test_a_smaller_quota_is_kept_at_once(copy):
    state = copy()
    store = open_store(state, quota_bytes=20_500)
    fill(store, range(23, 400))
    store.close()
    smallest = 19_200
    store = open_store(state, quota_bytes=smallest)
    assert bytes_in(state / "examples") <= smallest
    store.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quota_bytes": 1000}, r"quota_bytes is 1000, which holds no example .* give at least"),
        ({"retention_days": 0}, "retention_days is 0: give more than 0"),
        ({"retention_days": float("nan")}, "retention_days is nan"),
    ],
)
def test_impossible_limits_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        open_store(tmp_path, **options)


# -- from before ----------------------------------------------------------------------------------


def test_a_plain_store_is_taken_over_with_its_numbers(tmp_path):
    store = ExampleStore(tmp_path / "examples", X, Y, capacity=CAPACITY, sync_interval_s=0.0)
    fill(store, range(57))
    holdout = store.holdout()[0][:, 0].tolist()
    store.close()
    assert found_in(tmp_path) == (list(range(17, 57)), ())
    assert not list((tmp_path / "examples").glob("*.segment"))
    store = open_store(tmp_path)
    assert store.holdout()[0][:, 0].tolist() == holdout
    fill(store, [57])
    assert kept(store) == list(range(18, 58))
    store.close()


def test_a_take_over_that_was_cut_short_goes_on(tmp_path, monkeypatch):
    store = ExampleStore(tmp_path / "examples", X, Y, capacity=CAPACITY, sync_interval_s=0.0)
    fill(store, range(30))
    store.close()
    unlink, calls = Path.unlink, []

    def failing(path, *arguments, **options):
        if path.suffix == ".segment":
            calls.append(path)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
        return unlink(path, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(tmp_path)
    monkeypatch.undo()
    assert found_in(tmp_path) == (list(range(30)), ())
    assert not list((tmp_path / "examples").glob("*.segment"))
