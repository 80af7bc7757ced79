"""The guard's rules by hand, each with a control that must raise no alarm; then whole fits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rootlet_runtime import Bundle, FitProgress, FitResult, GuardConfig, Trainer
from rootlet_runtime.errors import DivergedError, NonFiniteLossError
from rootlet_runtime.guard import Guard, Observation

Examples = tuple[Any, Any]
SEEN = Observation(
    loss=1.0, loss_deviation=0.1, metric=0.6, examples=256, speeds={"head": 2.0, "site": 1.0}
)


def watching(*earlier: Observation, classifies: bool = True, chance: float = 0.2) -> Guard:
    guard = Guard(classifies=classifies, chance=chance)
    for seen in earlier or (SEEN,):
        assert guard.check(seen) == ""
    return guard


@pytest.mark.parametrize(
    ("loss", "reason"),
    [(1.55, ""), (1.65, "the loss rose from 1 to 1.65"), (50.0, "the loss rose from 1 to 50")],
)
def test_a_loss_beyond_six_deviations(loss: float, reason: str) -> None:
    """The bound is the larger of the first loss 1, 1.5 x 1, and 1 + 6 x 0.1."""
    assert watching().check(replace(SEEN, loss=loss)) == reason


def test_a_loss_that_is_still_below_the_first_is_no_alarm() -> None:
    guard = watching(replace(SEEN, loss=4.0), replace(SEEN, loss=1.0))
    assert guard.check(replace(SEEN, loss=3.9)) == ""


def test_the_loss_before_training_counts_if_enough_examples_tell_it() -> None:
    for examples, reason in ((64, "the loss rose from 1 to 2"), (63, "")):
        guard = Guard(classifies=True, chance=0.2)
        guard.expect(1.0, 0.5, examples)
        assert guard.check(replace(SEEN, loss=2.0)) == reason


@pytest.mark.parametrize(
    ("metric", "examples", "alarm"),
    [(0.50, 256, False), (0.45, 256, True), (0.45, 40, False), (0.25, 40, True)],
)
def test_a_fall_beyond_three_standard_errors(metric: float, examples: int, alarm: bool) -> None:
    """Of 256: sqrt(2 x 0.6 x 0.4 / 256) = 0.043, so 0.13; 40 examples have 0.25."""
    reason = watching().check(replace(SEEN, metric=metric, examples=examples))
    assert bool(reason) == alarm
    assert not reason or "on the steps fell from 60.0%" in reason


def test_a_fall_to_chance_is_told_as_such() -> None:
    """Half of the classes right is chance here; from 0.62 the fall is within 3 standard errors."""
    guard = watching(replace(SEEN, metric=0.72, examples=100), chance=0.5)
    reason = guard.check(replace(SEEN, metric=0.53, examples=100))
    assert reason.endswith("no better than always the same class")


def test_held_out_examples_tell_what_the_steps_do_not() -> None:
    guard = watching(replace(SEEN, held_out=0.7, held_out_examples=100))
    reason = guard.check(replace(SEEN, held_out=0.2, held_out_examples=100))
    assert reason.startswith("the accuracy on 100 held-out examples fell from 70.0% to 20.0%")
    assert guard.check(replace(SEEN, held_out=0.65, held_out_examples=100)) == ""


@pytest.mark.parametrize(("metric", "alarm"), [(2.1, True), (1.9, False)])
def test_a_regression_that_answers_a_constant(metric: float, alarm: bool) -> None:
    guard = watching(replace(SEEN, metric=0.4), classifies=False, chance=2.0)
    assert bool(guard.check(replace(SEEN, metric=metric))) == alarm


def test_a_regression_that_never_was_better_raises_no_alarm() -> None:
    guard = watching(replace(SEEN, metric=1.5), classifies=False, chance=2.0)
    assert guard.check(replace(SEEN, metric=2.1)) == ""


def test_dead_units_are_a_tensor_that_stops_while_another_moves() -> None:
    stopped = replace(SEEN, speeds={"head": 1.0, "site": 0.0})
    assert watching().check(stopped) == "dead units: site no longer moves"
    assert watching().check(replace(SEEN, speeds={"head": 1e-9, "site": 0.0})) == ""  # all learnt
    never = watching(stopped)
    assert never.check(stopped) == ""


def test_a_speed_ten_times_that_of_any_check() -> None:
    fast = replace(SEEN, speeds={"head": 30.0, "site": 1.0})
    assert watching(SEEN, SEEN).check(fast) == "the adapter moves 13 times as fast as ever before"
    assert watching().check(fast) == ""  # one check is no history
    assert watching(SEEN, SEEN).check(replace(SEEN, speeds={"head": 20.0, "site": 1.0})) == ""


def test_what_has_diverged_is_not_remembered() -> None:
    guard = watching()
    before = guard.to_notes()
    assert guard.check(replace(SEEN, loss=9.0, metric=0.9))
    assert guard.to_notes() == before


def test_notes_survive_json() -> None:
    guard = watching(replace(SEEN, held_out=0.7, held_out_examples=10))
    assert Guard.from_notes(json.loads(json.dumps(guard.to_notes()))) == guard
    new = Guard(classifies=True, chance=0.1)
    assert Guard.from_notes(json.loads(json.dumps(new.to_notes()))) == new


@pytest.mark.parametrize(
    "change",
    [{"held_out": 0}, {"max_rollbacks": -1}, {"backoff": 1.0}, {"held_out_share": 0.0}],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        GuardConfig(**change)


def test_checks_cost_no_more_than_their_share() -> None:
    """128 held-out examples at each 80 steps of 16 are a tenth of what is trained on."""
    assert GuardConfig().check_every(16, 128) == 80
    assert GuardConfig().check_every(16, 0) == 16


# -- whole fits ------------------------------------------------------------------------------------


@pytest.fixture
def lesson(bundle: Bundle) -> tuple[Examples, Examples]:
    """Something to learn, to train on and held out."""
    rng = np.random.default_rng(3)
    base = np.frombuffer(bundle.entry("base.bin")[64:], np.float32).reshape(4, 6)
    x = rng.normal(size=(500, 4)).astype(np.float32)
    y = (np.tanh(x @ base) @ rng.normal(size=(6, 3))).argmax(1)
    return (x[:400], y[:400]), (x[400:], y[400:])


def fit(trainer: Trainer, lesson: tuple[Examples, Examples], **changes: Any) -> FitResult:
    settings: dict[str, Any] = {"epochs": 6, "batch_size": 8, "learning_rate": 0.1}
    settings |= {"rng": np.random.default_rng(0), "held_out": lesson[1]} | changes
    return trainer.fit(*lesson[0], **settings)


# Rates that leave a softmax regression worse than untrained, by optimiser.
TOO_HIGH = {"sgd": 3000.0, "adam": 300.0}


def test_an_ordinary_fit_is_left_alone(bundle: Bundle, lesson: tuple[Examples, Examples]) -> None:
    guarded, free = Trainer(bundle), Trainer(bundle)
    result = fit(guarded, lesson)
    assert (result.rolled_back, result.reason, result.ended_by) == (0, "", "steps")
    fit(free, lesson, guard=None, held_out=None)
    assert all((guarded.adapter[n] == free.adapter[n]).all() for n in free.adapter)


def test_a_rate_far_too_high_is_noticed_and_lowered(
    bundle: Bundle, lesson: tuple[Examples, Examples]
) -> None:
    trainer, seen = Trainer(bundle), []
    before = trainer.evaluate(*lesson[1])
    result = fit(
        trainer, lesson, learning_rate=TOO_HIGH[bundle.manifest.optimizer], progress=seen.append
    )
    assert result.rolled_back > 0
    assert result.reason
    assert trainer.evaluate(*lesson[1]).loss < before.loss
    rates: list[FitProgress] = [report for report in seen if report.rolled_back]
    assert rates[0].reason
    assert rates[-1].learning_rate == pytest.approx(
        TOO_HIGH[bundle.manifest.optimizer] * 0.25**result.rolled_back
    )


def test_a_fit_that_only_gets_worse_is_refused_and_leaves_nothing(
    bundle: Bundle, lesson: tuple[Examples, Examples], tmp_path: Path
) -> None:
    trainer = Trainer(bundle)
    before = trainer._engine.state().digest()
    with pytest.raises(DivergedError, match=r"the adapter from before this fit is back"):
        fit(
            trainer,
            lesson,
            learning_rate=1e6,
            guard=GuardConfig(max_rollbacks=0),
            checkpoint_dir=tmp_path,
            checkpoint_every=3,
        )
    assert trainer._engine.state().digest() == before
    assert not list(tmp_path.iterdir())


def test_a_good_state_outlives_what_comes_after_it(
    bundle: Bundle, lesson: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 200 on every loss is not a number: the fit ends with what it had learnt."""
    trainer = Trainer(bundle)
    before = trainer.evaluate(*lesson[1])
    engine: Any = trainer._engine
    step, count = engine.step, [0]

    def fail_late(batch: Any, rate: float) -> tuple[float, float]:
        count[0] += 1
        loss, metric = step(batch, rate)
        return (loss if count[0] <= 200 else float("nan")), metric

    monkeypatch.setattr(engine, "step", fail_late)
    result = fit(trainer, lesson)
    assert (result.ended_by, result.stopped) == ("guard", False)
    assert (result.rolled_back, result.reason) == (6, "the loss is nan")
    assert trainer.evaluate(*lesson[1]).loss < before.loss
    assert np.isfinite(result.loss)


def test_without_a_good_state_what_is_not_finite_is_refused(
    bundle: Bundle, lesson: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(bundle)
    monkeypatch.setattr(trainer._engine, "step", lambda *_: (float("inf"), 0.0))
    with pytest.raises(NonFiniteLossError, match="the loss is inf"):
        fit(trainer, lesson)


@pytest.mark.parametrize("stop", [40, 111, 250])
def test_a_fit_that_was_rolled_back_goes_on_with_the_same_bits(
    stop: int, bundle: Bundle, lesson: tuple[Examples, Examples], tmp_path: Path
) -> None:
    rate = TOO_HIGH[bundle.manifest.optimizer]
    whole, first, second = Trainer(bundle), Trainer(bundle), Trainer(bundle)
    expected = fit(whole, lesson, learning_rate=rate)
    halted = fit(
        first,
        lesson,
        learning_rate=rate,
        checkpoint_dir=tmp_path,
        progress=lambda report: report.step < stop,
    )
    assert halted.stopped
    result = fit(
        second, lesson, learning_rate=rate, checkpoint_dir=tmp_path, rng=np.random.default_rng(9)
    )
    assert result.resumed_from_step == stop
    assert (result.rolled_back, result.reason) == (expected.rolled_back, expected.reason)
    assert all((whole.adapter[n] == second.adapter[n]).all() for n in whole.adapter)
