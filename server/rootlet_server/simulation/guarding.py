"""The guards of many clients at once: what ``rootlet_runtime.watch`` does on a device, stacked.

A device looks at its training after 64 examples, then every 256, and after the last step; where it
has diverged, it goes back to the last good state and lowers its rate (``rootlet_runtime.guard``).
Sums are kept for all clients in one array; the judgement itself is the device's own ``Guard``,
asked only for clients that a device would check after an earlier check: before that, the only thing
that can be wrong is a number that is not finite.

Shape legend: K clients of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rootlet_runtime.guard import FIRST_EXAMPLES, Guard, GuardConfig, Observation, chance_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from rootlet_server.simulation.batching import Batches

    Stack = dict[str, Tensor]

CONFIG = GuardConfig()  # the one that a device's round runs under


class StackedWatch:
    """Watches the clients of a chunk.

    Args:
        received: the start, [...] by name, the same for all.
        state: the optimisers', [K, ...] by name.
        number: [K], steps behind those.
        plan: the chunk's batches.
        labels: each client's.
        sizes: [K], examples of a step.
        classifies: whether the task is a classification.

    Attributes:
        factor: [K], on the learning rates.
        steps: [K], taken in the end.
        failed: [K], no state since the start was good: a device answers with an error.
        stopped: [K], training has ended early, with the last good state.
    """

    def __init__(  # noqa: PLR0917 (one caller)
        self,
        received: Stack,
        state: Stack,
        number: Tensor,
        plan: Batches,
        labels: Sequence[npt.NDArray[np.generic]],
        sizes: npt.NDArray[np.int64],
        *,
        classifies: bool,
    ) -> None:
        count = len(labels)
        self.factor, self.steps = np.ones(count, np.float32), plan.steps.copy()
        self.failed, self.stopped = np.zeros(count, bool), np.zeros(count, bool)
        self._last = plan.steps - 1
        self._every = np.array([CONFIG.check_every(int(size), 0) for size in sizes])
        self._labels, self._classifies = labels, classifies
        self._guards: dict[int, Guard] = {}
        self._rollbacks = np.zeros(count, np.int64)
        self._sums = np.zeros((6, count))  # steps, examples, loss, its square, metric, rate
        # views of the one start, until a client has passed a check
        self._good_adapter = {name: v.expand(count, *v.shape) for name, v in received.items()}
        self._owned = False
        self._good_state = {name: value.clone() for name, value in state.items()}
        self._good_number = number.clone()

    def after(  # noqa: PLR0917 (one caller)
        self,
        step: int,
        told: npt.NDArray[np.float64],
        counts: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float32],
        adapter: Stack,
        state: Stack,
        number: Tensor,
    ) -> npt.NDArray[np.bool_]:
        """Take a step of the first ``a`` clients; those that diverged are set back in place.

        Args:
            step: counted from 0.
            told: [2, a], losses and metrics of the step, from before its update.
            counts: [a], its examples.
            rates: [a], its learning rates.
            adapter: [K, ...] by name, after it.
            state: [K, ...] by name, after it.
            number: [K], steps behind the optimisers.

        Returns:
            [a], whether the step counts in what the client reports.
        """
        a = len(counts)
        going = ~(self.stopped[:a] | self.failed[:a])
        finite = np.isfinite(told[0])
        counted: npt.NDArray[np.bool_] = going & finite
        loss, metric = np.where(counted, told, 0.0)
        seen = (np.ones(a), counts, loss * counts, loss * loss * counts, metric * counts, rates)
        self._sums[:, :a] += np.stack(seen) * counted
        last = self._last[:a] == step
        checked = np.fromiter((k in self._guards for k in range(a)), bool, a)
        steps, examples = self._sums[0, :a], self._sums[1, :a]
        due = np.where(checked, steps >= self._every[:a], examples >= FIRST_EXAMPLES)
        rows = np.flatnonzero(going & (~finite | (due & ~last) | (checked & last)))
        if len(rows):
            self._check(step, rows, finite, adapter, state, number)
        return counted

    @property
    def rolled_back(self) -> npt.NDArray[np.bool_]:
        """[K], whether a client went back at least once."""
        went: npt.NDArray[np.bool_] = self._rollbacks > 0
        return went

    def settle(self, adapter: Stack, state: Stack, number: Tensor) -> None:
        """Give clients that stopped early their last good state, after the last step."""
        rows = np.flatnonzero(self.stopped)
        if len(rows):
            self._restore(rows, adapter, state, number)

    def _check(  # noqa: PLR0917 (one caller)
        self,
        step: int,
        rows: npt.NDArray[np.intp],
        finite: npt.NDArray[np.bool_],
        adapter: Stack,
        state: Stack,
        number: Tensor,
    ) -> None:
        at = torch.from_numpy(rows)
        sound = finite[rows]
        for value in (*adapter.values(), *state.values()):
            sound &= value[at].flatten(1).isfinite().all(1).numpy()
        moved = {
            name: (value[at] - self._good_adapter[name][at]).double().flatten(1).norm(dim=1).numpy()
            for name, value in adapter.items()
        }
        bad = np.array(
            [
                not ok or self._diverged(int(k), {name: float(v[i]) for name, v in moved.items()})
                for i, (k, ok) in enumerate(zip(rows, sound, strict=True))
            ]
        )
        wrong, keep = rows[bad], torch.from_numpy(rows[~bad])
        if not self._owned:
            self._good_adapter = {name: v.clone() for name, v in self._good_adapter.items()}
            self._owned = True
        for kept, now in ((self._good_adapter, adapter), (self._good_state, state)):
            for name, value in now.items():
                kept[name][keep] = value[keep]
        self._good_number[keep] = number[keep]
        self._sums[:, rows] = 0
        self._rollbacks[wrong] += 1
        last = self._last[wrong] == step
        over = last | (self._rollbacks[wrong] > CONFIG.max_rollbacks)
        unchecked = np.array([k not in self._guards for k in wrong.tolist()], bool)
        self.failed[wrong[over & unchecked]] = True
        early = wrong[over & ~last]
        self.stopped[early], self.steps[early] = True, step + 1
        self.factor[wrong] *= CONFIG.backoff
        self._restore(wrong, adapter, state, number)

    def _diverged(self, k: int, moved: dict[str, float]) -> bool:
        _, examples, loss, squares, metric, rate = self._sums[:, k]
        guard = self._guards.get(k)
        if guard is None:
            chance = chance_of(self._labels[k], classifies=self._classifies)
            guard = Guard(classifies=self._classifies, chance=chance)
        mean = loss / examples
        reason = guard.check(
            Observation(
                loss=mean,
                loss_deviation=max(squares / examples - mean * mean, 0.0) ** 0.5,
                metric=metric / examples,
                examples=int(examples),
                speeds={name: value / rate for name, value in moved.items()},
            )
        )
        if not reason:
            self._guards[k] = guard
        return bool(reason)

    def _restore(
        self, rows: npt.NDArray[np.intp], adapter: Stack, state: Stack, number: Tensor
    ) -> None:
        at = torch.from_numpy(rows)
        for kept, now in ((self._good_adapter, adapter), (self._good_state, state)):
            for name, value in now.items():
                value[at] = kept[name][at]
        number[at] = self._good_number[at]
