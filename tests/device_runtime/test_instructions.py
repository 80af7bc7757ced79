"""The kernel's counters: the mechanics by one that every Linux has, the hardware's where it is."""

import platform
import sys
import time

import numpy as np

from rootlet_runtime.instructions import SYSCALLS, TASK_CLOCK_NS, InstructionCounter


def test_outside_with_there_is_nothing_to_read():
    counter = InstructionCounter(TASK_CLOCK_NS)
    assert counter.read() is None
    with counter:
        pass
    assert counter.read() is None


def test_an_event_that_does_not_exist_counts_nothing():
    with InstructionCounter((1, 9999)) as counter:
        assert counter.read() is None


def test_a_counter_runs_with_the_thread_and_not_with_the_clock():
    """The task clock is the thread's processor time, in nanoseconds."""
    with InstructionCounter(TASK_CLOCK_NS) as counter:
        before = counter.read()
        if before is None:  # a kernel or container without perf_event_open: the answer is None
            assert not sys.platform.startswith("linux") or platform.machine() in SYSCALLS
            return
        time.sleep(0.05)
        slept = counter.read() - before
        started = time.thread_time_ns()
        while (worked := time.thread_time_ns() - started) < 200_000_000:
            np.linalg.svd(np.ones((50, 50)))
        counted = counter.read() - before - slept
    assert counted > 0.5 * worked  # more where a hypervisor gives the processor to another guest
    assert slept < 25_000_000


def test_instructions_grow_with_the_work_where_the_processor_counts_them():
    with InstructionCounter() as counter:
        if (start := counter.read()) is not None:
            sum(range(100_000))
            middle = counter.read()
            sum(range(1_000_000))
            assert counter.read() - middle > 5 * (middle - start) > 0
