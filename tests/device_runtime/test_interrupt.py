"""A signal may arrive between any two instructions: the state is then that of a whole step."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rootlet_runtime import Bundle, Trainer

EPOCHS = 2000
DELAYS_S = np.linspace(0.005, 0.08, 12)


def fit(trainer: Trainer, examples: tuple[Any, Any], stop_at: int = -1) -> None:
    rng = np.random.default_rng(0)
    trainer.fit(
        *examples,
        epochs=EPOCHS,
        batch_size=8,
        learning_rate=0.1,
        rng=rng,
        progress=lambda report: report.step != stop_at,
    )


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGUSR1 raises what Ctrl-C raises."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("delay_s", DELAYS_S)
@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_state_is_that_of_a_whole_step(
    delay_s: float, bundle: Bundle, examples: tuple[Any, Any]
) -> None:
    interrupted, stopped = Trainer(bundle), Trainer(bundle)
    fit(interrupted, examples, stop_at=1)
    interrupted.load_adapter(bundle.initial_adapter())
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGUSR1))

    def fit_until_interrupted() -> None:
        timer.start()  # in here: on a busy machine the signal may come before the fit
        fit(interrupted, examples)

    with pytest.raises(KeyboardInterrupt):
        fit_until_interrupted()
    timer.join()
    state = interrupted._engine.state()
    if state.steps:
        fit(stopped, examples, stop_at=state.steps)
    expected = stopped._engine.state()
    assert state.steps == expected.steps
    for found, wanted in ((state.adapter, expected.adapter), (state.optimizer, expected.optimizer)):
        assert all((found[name] == wanted[name]).all() for name in wanted)
