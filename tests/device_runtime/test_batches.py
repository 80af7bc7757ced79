import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rootlet_runtime.batches import Schedule, draw_seed, gather, in_order

SCHEDULES = st.builds(
    Schedule,
    seed=st.integers(0, 2**63 - 1),
    examples=st.integers(1, 60),
    batch_size=st.integers(1, 16),
    epochs=st.integers(1, 4),
)


@given(SCHEDULES)
def test_every_example_is_seen_exactly_once_an_epoch(schedule: Schedule) -> None:
    rows = list(schedule.rows())
    assert len(rows) == schedule.steps == schedule.steps_per_epoch * schedule.epochs
    for epoch in range(schedule.epochs):
        steps = rows[epoch * schedule.steps_per_epoch : (epoch + 1) * schedule.steps_per_epoch]
        np.testing.assert_array_equal(np.sort(np.concatenate(steps)), np.arange(schedule.examples))


@given(SCHEDULES, st.data())
def test_a_resumed_schedule_is_the_rest_of_the_whole(
    schedule: Schedule, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, schedule.steps))
    whole, rest = list(schedule.rows())[start:], list(schedule.rows(start))
    assert len(whole) == len(rest)
    for expected, found in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(expected, found)


@given(st.integers(1, 20), st.integers(1, 20))
def test_padding_repeats_the_first_row_with_no_weight(real: int, spare: int) -> None:
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20)
    rows = np.random.default_rng(real).permutation(20)[:real]
    batch = gather(x, y, rows, real + spare)
    assert len(batch.x) == len(batch.y) == len(batch.w) == real + spare
    assert batch.examples == real == batch.w.sum()
    np.testing.assert_array_equal(batch.x[:real], x[rows])
    assert (batch.x[real:] == x[rows[0]]).all()
    assert (batch.y[real:] == y[rows[0]]).all()


@given(st.integers(1, 50), st.integers(1, 20))
def test_evaluation_reads_in_order(examples: int, size: int) -> None:
    np.testing.assert_array_equal(
        np.concatenate(list(in_order(examples, size))), np.arange(examples)
    )


def test_one_number_is_drawn_from_the_callers_generator() -> None:
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    assert draw_seed(first) == draw_seed(second)
    assert first.integers(100) == second.integers(100)


def test_epochs_differ() -> None:
    rows = list(Schedule(seed=1, examples=50, batch_size=50, epochs=2).rows())
    assert (rows[0] != rows[1]).any()
