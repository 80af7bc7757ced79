"""A signal may arrive between any two instructions: the state is then the one from before."""

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


def fit(trainer: Trainer, examples: tuple[Any, Any], epochs: int) -> None:
    rng = np.random.default_rng(0)
    trainer.fit(*examples, epochs=epochs, batch_size=8, learning_rate=0.1, rng=rng)


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
def test_an_interrupted_fit_gives_the_state_back(
    delay_s: float, bundle: Bundle, examples: tuple[Any, Any]
) -> None:
    trainer = Trainer(bundle)
    fit(trainer, examples, 1)
    before = trainer._engine.state()
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGUSR1))

    def fit_until_interrupted() -> None:
        timer.start()  # in here: on a busy machine the signal may come before the fit
        fit(trainer, examples, EPOCHS)

    with pytest.raises(KeyboardInterrupt):
        fit_until_interrupted()
    timer.join()
    assert trainer._engine.state().digest() == before.digest()
