"""What a fit spends: estimated to the last operation, measured where there is a meter, bounded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rootlet_runtime import Bundle, FitProgress, FitResult, Meter, Trainer, count_work

Examples = tuple[Any, Any]
STEPS = 10


def fit(trainer: Trainer, examples: Examples, **changes: Any) -> FitResult:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 0.1}
    return trainer.fit(*examples, **(settings | {"rng": np.random.default_rng(0)} | changes))


def unmetered(bundle: Bundle, tmp_path: Path) -> Trainer:
    return Trainer(bundle, meter=Meter(tmp_path / "no-sysfs"))


def test_without_a_meter_the_work_is_counted_and_called_an_estimate(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    cost = bundle.manifest.cost
    energy = fit(unmetered(bundle, tmp_path), examples).energy
    work = count_work(cost, train_examples=2 * 37, train_batches=STEPS)
    assert (energy.method, energy.source, energy.work) == ("estimated", "operations", work)
    assert energy.joules == work.estimated_j > 0
    x, y = examples
    guarded = fit(unmetered(bundle, tmp_path), examples, held_out=(x[:9], y[:9])).energy.work
    evaluated = guarded.bytes_moved - work.bytes_moved
    assert evaluated % (2 * cost["weight_bytes"]) == 0  # nine examples are two batches of eight
    assert evaluated >= 2 * 2 * cost["weight_bytes"]  # before the first step and after the last


def test_a_meter_measures_what_the_fit_took(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    zone = tmp_path / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {
        "name": "package-0",
        "max_energy_range_uj": "100",
        "energy_uj": "90",
    }.items():
        (zone / name).write_text(text)

    def burn(report: FitProgress) -> None:
        if report.step == 4:
            (zone / "energy_uj").write_text("20")

    energy = fit(Trainer(bundle, meter=Meter(tmp_path)), examples, progress=burn).energy
    assert (energy.method, energy.source) == ("measured", "rapl")
    assert energy.joules == pytest.approx(30e-6)
    assert energy.work.macs_float32 > 0


@pytest.mark.parametrize("share", [0.05, 0.3, 0.55, 0.99])
def test_a_limit_stops_before_the_step_that_would_exceed_it_and_it_can_go_on(
    share: float, bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    """The estimate is the same for every full step, so the limit is kept but for a first step."""
    whole = unmetered(bundle, tmp_path)
    needed = fit(whole, examples, guard=None).energy.joules
    folder = tmp_path / "checkpoint"
    first, again, last = (unmetered(bundle, tmp_path) for _ in range(3))
    limited = fit(first, examples, energy_limit_j=share * needed, checkpoint_dir=folder, guard=None)
    assert (limited.ended_by, limited.stopped) == ("energy", True)
    assert 1 <= limited.steps < STEPS
    assert limited.energy.joules <= max(share * needed, needed * 8 / 74 * 1.01)
    refused = fit(again, examples, energy_limit_j=share * needed, checkpoint_dir=folder, guard=None)
    assert (refused.ended_by, refused.steps) == ("energy", limited.steps)  # the limit is of the fit
    result = fit(last, examples, checkpoint_dir=folder, guard=None)
    assert (result.ended_by, result.steps, result.resumed_from_step) == (
        "steps", STEPS, limited.steps,
    )  # fmt: skip
    assert all((last.adapter[n] == whole.adapter[n]).all() for n in whole.adapter)


def test_a_limit_that_suffices_stops_nothing(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    needed = fit(unmetered(bundle, tmp_path), examples).energy.joules
    result = fit(unmetered(bundle, tmp_path), examples, energy_limit_j=1.2 * needed)
    assert result.ended_by == "steps"


def test_progress_is_told_the_rate_and_the_energy_so_far(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    seen: list[FitProgress] = []
    fit(unmetered(bundle, tmp_path), examples, progress=seen.append)
    joules = [report.energy.joules for report in seen]
    assert joules == sorted(joules)
    assert joules[0] > 0
    assert {report.learning_rate for report in seen} == {0.1}
