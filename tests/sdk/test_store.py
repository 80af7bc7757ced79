"""The example store: what it keeps, what it drops, and what a crash cannot take."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.errors import ConfigError, StoreError
from rootlet.segment import RecordFormat, SegmentWriter
from rootlet.store import ExampleStore, is_held_out
from rootlet_runtime.errors import DataError
from rootlet_runtime.manifest import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(None, 3))
Y = TensorSpec(name="y", dtype="int64", shape=(None,))


@pytest.fixture
def open_store(tmp_path):
    stores = []

    def open_(**options):
        store = ExampleStore(tmp_path / "examples", X, Y, **{"sync_interval_s": 0.0} | options)
        stores.append(store)
        return store

    yield open_
    for store in stores:
        store.close()


def example(number):
    return np.full(3, number, np.float32), np.int64(number % 7)


def observe(store, numbers):
    for number in numbers:
        store.observe(*example(number))


def kept(store):
    """The numbers of the examples held, and of those held out."""
    (train_x, train_y), (holdout_x, holdout_y) = store.train(), store.holdout()
    for x, y in ((train_x, train_y), (holdout_x, holdout_y)):
        assert x.shape == (len(y), 3)
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(y, x[:, 0].astype(np.int64) % 7)
    train, holdout = train_x[:, 0].astype(int).tolist(), holdout_x[:, 0].astype(int).tolist()
    assert train == sorted(train)
    assert not set(train) & set(holdout)
    return sorted(train + holdout), holdout


def segments(store):
    return sorted(store.directory.glob("*.segment"))


def test_examples_come_back_in_two_disjoint_parts(open_store):
    store = open_store()
    observe(store, range(20))
    numbers, holdout = kept(store)
    assert numbers == list(range(20))
    assert holdout == [number for number in range(20) if is_held_out(number, 5)]
    assert len(store) == 20


def test_an_empty_store_gives_empty_arrays(open_store):
    assert kept(open_store()) == ([], [])


@given(block=st.integers(0, 2**40), every=st.integers(2, 50))
def test_each_block_of_examples_holds_out_exactly_one(block, every):
    places = [is_held_out(block * every + place, every) for place in range(every)]
    assert sum(places) == 1


def test_the_place_held_out_follows_no_period():
    places = [next(p for p in range(5) if is_held_out(5 * b + p, 5)) for b in range(2000)]
    counts = np.bincount(places, minlength=5)
    # Binomial(2000, 1/5): mean 400, deviation 17.9; six deviations on either side.
    assert np.all(np.abs(counts - 400) < 108)
    pairs = np.bincount([5 * a + b for a, b in itertools.pairwise(places)], minlength=25)
    # Binomial(1999, 1/25): mean 80, deviation 8.8.
    assert np.all(np.abs(pairs - 80) < 53)


def test_a_reopened_store_goes_on_where_it_stopped(open_store):
    first = open_store()
    observe(first, range(7))
    first.close()
    second = open_store()
    observe(second, range(7, 12))
    assert kept(second) == (list(range(12)), [n for n in range(12) if is_held_out(n, 5)])
    assert second.notes == ()


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(0, 30), max_size=5), capacity=st.integers(1, 20))
def test_a_ring_keeps_the_newest_and_bounds_the_disk(tmp_path_factory, counts, capacity):
    folder, total = tmp_path_factory.mktemp("ring"), 0
    for count in counts:
        store = ExampleStore(folder, X, Y, capacity=capacity, sync_interval_s=0.0)
        observe(store, range(total, total + count))
        total += count
        store.flush()
        assert kept(store)[0] == list(range(max(0, total - capacity), total))
        assert len(store) == min(total, capacity)
        header, record = RecordFormat(X, Y).header_bytes, RecordFormat(X, Y).record_bytes
        on_disk = sum((path.stat().st_size - header) // record for path in segments(store))
        assert on_disk <= capacity + -(-capacity // 8)
        store.close()


def test_observing_waits_neither_for_the_disk_nor_for_a_reader(open_store, monkeypatch):
    store = open_store()
    reached, release = threading.Event(), threading.Event()
    append = SegmentWriter.append

    def slow(self, raw):
        reached.set()
        assert release.wait(30)
        append(self, raw)

    monkeypatch.setattr(SegmentWriter, "append", slow)
    observe(store, [0])
    assert reached.wait(30)
    observe(store, range(1, 5))  # returns although the disk hangs
    assert len(store) == 5
    release.set()
    store.flush()
    assert kept(store)[0] == [0, 1, 2, 3, 4]


def test_a_hanging_disk_does_not_let_memory_grow(open_store, monkeypatch):
    store = open_store(capacity=10)
    release = threading.Event()
    append = SegmentWriter.append

    def slow(self, raw):
        assert release.wait(30)
        append(self, raw)

    monkeypatch.setattr(SegmentWriter, "append", slow)
    observe(store, range(100))
    assert len(store) == 10
    release.set()
    store.flush()
    assert kept(store)[0] == list(range(90, 100))


def test_a_full_disk_is_reported_and_nothing_is_lost_when_it_has_room_again(
    open_store, monkeypatch
):
    store = open_store()
    observe(store, [0])
    store.flush()
    pwrite, full = os.pwrite, True

    def failing(file, raw, offset):
        if full:
            pwrite(file, raw[:5], offset)
            raise OSError(28, "No space left on device")
        return pwrite(file, raw, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    observe(store, [1, 2])
    with pytest.raises(StoreError, match=r"No space left on device.*free some space"):
        store.flush()
    full = False
    store.flush()
    assert kept(store)[0] == [0, 1, 2]
    store.close()
    assert open_store().notes == ()


def test_a_disk_that_stays_full_costs_no_file_descriptors(open_store, monkeypatch):
    def full(file, raw, offset):
        raise OSError(28, "No space left on device")

    def open_files():
        return len(list(Path("/proc/self/fd").iterdir()))

    store, before = open_store(), open_files()
    monkeypatch.setattr(os, "pwrite", full)
    observe(store, [0])
    for _ in range(5):
        with pytest.raises(StoreError, match="No space left"):
            store.flush()
    assert open_files() == before
    monkeypatch.undo()


@pytest.mark.parametrize("torn", range(1, 44))
def test_a_torn_end_is_cut_off_and_noted(tmp_path, torn):
    store = ExampleStore(tmp_path, X, Y)
    observe(store, range(4))
    store.close()
    path = segments(store)[0]
    os.truncate(path, path.stat().st_size - torn)
    store = ExampleStore(tmp_path, X, Y)
    assert len(store.notes) == 1
    assert "torn bytes" in store.notes[0]
    observe(store, [3])
    store.close()
    assert kept(ExampleStore(tmp_path, X, Y))[0] == [0, 1, 2, 3]


def test_a_file_torn_within_its_header_is_begun_anew(tmp_path):
    store = ExampleStore(tmp_path, X, Y)
    observe(store, [0])
    store.close()
    os.truncate(segments(store)[0], 9)
    store = ExampleStore(tmp_path, X, Y)
    observe(store, [5])
    store.close()
    assert kept(ExampleStore(tmp_path, X, Y))[0] == [5]


def test_an_end_that_was_allocated_but_never_written_is_cut_off(tmp_path):
    store = ExampleStore(tmp_path, X, Y)
    observe(store, range(4))
    store.close()
    path = segments(store)[0]
    os.truncate(path, path.stat().st_size + 100)
    store = ExampleStore(tmp_path, X, Y)
    assert "cut 100 torn bytes" in store.notes[0]
    assert kept(store)[0] == [0, 1, 2, 3]
    store.close()


def test_a_flipped_byte_costs_one_example(tmp_path):
    store = ExampleStore(tmp_path, X, Y)
    observe(store, range(4))
    store.close()
    path = segments(store)[0]
    raw = bytearray(path.read_bytes())
    raw[-50] ^= 1
    path.write_bytes(raw)
    store = ExampleStore(tmp_path, X, Y)
    assert kept(store)[0] == [0, 1, 3]
    assert store.notes == (f"{path.name}: 1 damaged examples dropped",)
    observe(store, [4])
    assert kept(store)[0] == [0, 1, 3, 4]
    store.close()


def test_a_killed_process_keeps_what_it_flushed(tmp_path):
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from rootlet.store import ExampleStore\n"
        "from rootlet_runtime.manifest import TensorSpec\n"
        "x = TensorSpec(name='x', dtype='float32', shape=(None, 3))\n"
        "y = TensorSpec(name='y', dtype='int64', shape=(None,))\n"
        "store = ExampleStore(Path(sys.argv[1]), x, y, capacity=64, sync_interval_s=0.0)\n"
        "number = 0\n"
        "while True:\n"
        "    store.observe(np.full(3, number, np.float32), np.int64(number % 7))\n"
        "    number += 1\n"
        "    if number % 5 == 0:\n"
        "        store.flush()\n"
        "        print(number, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        lines = [process.stdout.readline() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    flushed = max(int(line) for line in lines if line.endswith("\n"))
    store = ExampleStore(tmp_path, X, Y, capacity=64)
    numbers, _ = kept(store)
    assert numbers[-1] >= flushed - 1
    assert numbers == list(range(numbers[-1] - 63, numbers[-1] + 1))
    store.close()


def test_erasing_removes_every_trace_and_the_store_goes_on(open_store):
    store = open_store()
    observe(store, range(10))
    store.flush()
    observe(store, [10])
    store.erase()
    assert segments(store) == []
    assert kept(store) == ([], [])
    observe(store, [42])
    store.flush()
    assert kept(store)[0] == [42]


def test_files_are_readable_by_their_owner_only(open_store):
    store = open_store()
    observe(store, [0])
    store.flush()
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert segments(store)[0].stat().st_mode & 0o777 == 0o600


def test_another_bundle_s_shapes_are_refused_with_a_remedy(tmp_path):
    store = ExampleStore(tmp_path, X, Y)
    observe(store, [0])
    store.close()
    wider = TensorSpec(name="x", dtype="float32", shape=(None, 4))
    with pytest.raises(StoreError, match=r"another shape or dtype.*erase"):
        ExampleStore(tmp_path, wider, Y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(4, np.float32), np.int64(0), r"x is float32 of shape \(4,\)"),
        (np.zeros(3, np.float64), np.int64(0), "x is float64"),
        (np.zeros(3, np.float32), np.float32(0), "y is float32"),
        (np.zeros(3, np.float32), np.zeros(2, np.int64), r"y is int64 of shape \(2,\)"),
    ],
)
def test_an_example_of_another_shape_or_dtype_is_refused(open_store, x, y, message):
    with pytest.raises(DataError, match=message):
        open_store().observe(x, y)


def test_the_caller_may_reuse_its_array(open_store):
    store, x = open_store(), np.zeros(3, np.float32)
    store.observe(x, np.int64(0))
    x[:] = 9
    assert kept(store)[0] == [0]


@pytest.mark.parametrize(
    ("x_spec", "y_spec"),
    [
        (TensorSpec(name="x", dtype="uint8", shape=(None, 2, 4, 4)), Y),
        (TensorSpec(name="x", dtype="int64", shape=(None, 6)), Y),
        (X, TensorSpec(name="y", dtype="float32", shape=(None, 2))),
    ],
)
def test_every_kind_of_example_comes_back_bit_for_bit(tmp_path, x_spec, y_spec):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (12, *x_spec.shape[1:])).astype(x_spec.dtype)
    y = rng.integers(0, 9, (12, *y_spec.shape[1:])).astype(y_spec.dtype)
    store = ExampleStore(tmp_path, x_spec, y_spec)
    for row_x, row_y in zip(x, y, strict=True):
        store.observe(row_x, row_y)
    store.close()
    reopened = ExampleStore(tmp_path, x_spec, y_spec)
    part = np.array([is_held_out(number, 5) for number in range(12)])
    for (got_x, got_y), rows in ((reopened.train(), ~part), (reopened.holdout(), part)):
        np.testing.assert_array_equal(got_x, x[rows])
        np.testing.assert_array_equal(got_y, y[rows])
    reopened.close()


def test_a_closed_store_takes_nothing_more_but_can_be_read(open_store):
    store = open_store()
    observe(store, [0])
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.observe(*example(1))
    assert kept(store)[0] == [0]


@pytest.mark.parametrize(
    ("options", "message"), [({"capacity": 0}, "capacity"), ({"holdout_every": 1}, "holdout_every")]
)
def test_impossible_sizes_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        ExampleStore(Path(tmp_path), X, Y, **options)
