"""The private rows: DP-SGD (Abadi et al. 2016) with the rules' own per-example gradients.

Poisson-sampled batches, per-example clipping as in the compiled ``grads`` graph, Gaussian noise on
the sum, the expected batch as divisor, Adam outside. The noise multiplier comes from
dp-accounting's privacy loss distributions. Unit: one example; neighbours add or remove one. This
is a simulation: its noise is not from a secure generator, and the choice of rates on validation
data is not charged, alike for every row.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rootlet_runtime.schedule import RateSchedule
from rootlet_server.bench.arms import ARMS
from rootlet_server.bench.packages import package_folder
from rootlet_server.bench.task_handwriting import handwriting
from rootlet_server.bench.training import WARMUP, Trained, accuracies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.bench.problem import Problem
    from rootlet_server.compiler.build import Built

    Tensors = Mapping[str, Tensor]

EXAMPLES, EPOCHS, SAMPLE_RATE = 2000, 8, 0.05
DELTA = 1e-5
MAX_GRAD_NORM, UNCLIPPED = 0.3, 1e9
EPSILONS = (None, 8.0, 4.0, 1.0)
"""None: neither clipping nor noise."""
RATES = (3e-3, 1e-2, 3e-2)
ARMS_TRIED = ("head", "bp-lora", "bp", "dfa", "dfa-blocks-3")
TASK = "private"
BETA1, BETA2, TINY = 0.9, 0.999, 1e-7


@lru_cache
def noise_multiplier(epsilon: float | None, steps: int, sample_rate: float) -> float:
    """Standard deviation by the clip that spends epsilon at ``DELTA`` in so many steps."""
    if epsilon is None:
        return 0.0
    package_folder("dp_accounting", TASK)
    import dp_accounting  # noqa: PLC0415
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    def event(sigma: float) -> Any:
        step = dp_accounting.PoissonSampledDpEvent(
            sample_rate, dp_accounting.GaussianDpEvent(sigma)
        )
        return dp_accounting.SelfComposedDpEvent(step, steps)

    found: float = dp_accounting.calibrate_dp_mechanism(
        PLDAccountant,
        event,
        epsilon,
        DELTA,
        dp_accounting.LowerEndpointAndGuess(0.4, 1.0),
        tol=1e-3,
    )
    return found


@lru_cache(maxsize=4)
def drawn(seed: int) -> Problem:
    """Handwriting with more training data: 2,000 examples."""
    return handwriting(seed, examples=EXAMPLES)


@dataclass(frozen=True, kw_only=True)
class PrivateCell:
    """One arm and seed at some (epsilon, rate) pairs; seed 0 has every rate at every epsilon."""

    arm: str
    seed: int
    grid: tuple[tuple[float | None, float], ...]
    epochs: int = EPOCHS
    task: str = TASK
    version: int = 2

    @property
    def key(self) -> str:
        """A digest of everything that the result depends on."""
        settings = {**asdict(self), "q": SAMPLE_RATE, "clip": MAX_GRAD_NORM, "n": EXAMPLES}
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self) -> dict[str, Any]:
        """Accuracies in 0..1 for each epsilon and rate."""
        started = time.monotonic()
        problem = drawn(self.seed)
        built = ARMS[self.arm].build(problem, self.seed)
        steps = round(self.epochs / SAMPLE_RATE)
        grid = [(noise_multiplier(e, steps, SAMPLE_RATE), rate) for e, rate in self.grid]
        trained = train_privately(built, problem, grid, steps=steps, seed=self.seed)
        validation, test = (
            accuracies(built, trained, data, stacked=True)
            for data in (problem.validation, problem.test)
        )
        return {
            "key": self.key,
            **asdict(self),
            "runs": [
                {"epsilon": epsilon, "rate": rate, "noise_multiplier": sigma, "validation": v,
                 "test": t}
                for (epsilon, rate), (sigma, _), v, t in zip(
                    self.grid, grid, validation, test, strict=True
                )
            ],
            "seconds": time.monotonic() - started,
        }  # fmt: skip


def train_privately(
    built: Built, problem: Problem, grid: list[tuple[float, float]], *, steps: int, seed: int
) -> Trained:
    """DP-SGD for every (noise multiplier, rate) of the grid at once; without noise, SGD."""
    step, data = built.step, problem.train
    sigma_R, rate_R = (torch.tensor(column) for column in zip(*grid, strict=True))
    clip_R = torch.where(sigma_R > 0, MAX_GRAD_NORM, UNCLIPPED)

    def clipped(adapter: Tensors, clip: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = step.gradients(
            built.frozen, adapter, x, y, torch.ones(len(y)), clip
        )[3]
        return sums

    run = torch.func.vmap(clipped, (0, 0, None, None))
    adapter = {name: torch.stack([v] * len(grid)) for name, v in built.adapter.items()}
    m, v = ({name: torch.zeros_like(p) for name, p in adapter.items()} for _ in range(2))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    schedule, expected = RateSchedule(decay="linear", warmup=WARMUP), len(data) * SAMPLE_RATE
    with torch.no_grad():
        for number in range(steps):
            rows = torch.from_numpy(np.flatnonzero(rng.random(len(data)) < SAMPLE_RATE))
            sums = run(adapter, clip_R, data.x[rows], data.y[rows])
            for name, p in adapter.items():
                spread = (sigma_R * clip_R).reshape(-1, *[1] * (p.dim() - 1))
                noise = torch.randn(p.shape, generator=generator) * spread
                g = (sums[name] + noise) / expected
                m[name] = BETA1 * m[name] + (1 - BETA1) * g
                v[name] = BETA2 * v[name] + (1 - BETA2) * g * g
                rate = (rate_R * schedule.factor(number, steps)).reshape(spread.shape)
                root = (v[name] / (1 - BETA2 ** (number + 1))).sqrt() + TINY
                adapter[name] = p - rate * (m[name] / (1 - BETA1 ** (number + 1))) / root
    return Trained(rates=tuple(float(rate) for rate in rate_R), adapters=adapter)


def first_cells(arms: list[str]) -> list[PrivateCell]:
    """The cells that try every rate, for those of the asked arms that the table compares."""
    return [
        PrivateCell(
            arm=arm, seed=0, grid=tuple((e, r) for e in EPSILONS for r in ARMS[arm].rates(RATES))
        )
        for arm in ARMS_TRIED
        if arm in arms
    ]


def further_cells(tuned: PrivateCell, record: Mapping[str, Any], seeds: int) -> list[PrivateCell]:
    """The other seeds, at the rate that the first chose for each epsilon."""
    if tuned.seed:
        return []
    chosen = tuple(
        max(
            (run for run in record["runs"] if run["epsilon"] == epsilon),
            key=lambda run: run["validation"],
        )
        for epsilon in EPSILONS
    )
    grid = tuple((run["epsilon"], run["rate"]) for run in chosen)
    return [replace(tuned, seed=seed, grid=grid) for seed in range(1, seeds)]
