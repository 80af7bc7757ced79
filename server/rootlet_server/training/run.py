"""One run of full training, from its last checkpoint to its last step."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.training.averages import Averages, recompute_statistics
from rootlet_server.training.checkpoint import checkpoints
from rootlet_server.training.data import epoch_rows
from rootlet_server.training.errors import NonFiniteError
from rootlet_server.training.evaluate import evaluate, part_of
from rootlet_server.training.events import Evaluated, Resumed, Saved, Stepped
from rootlet_server.training.non_finite import find_layer
from rootlet_server.training.optimizers import make_optimizer
from rootlet_server.training.run_state import RunState, fingerprint
from rootlet_server.training.schedules import rate_share
from rootlet_server.training.steppers import take_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from rootlet_server.training.config import FullTrainingConfig
    from rootlet_server.training.data import TrainingData
    from rootlet_server.training.engine import Engine
    from rootlet_server.training.events import OnTraining

    Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
    Parts = list[tuple[Tensor, Tensor, float]]


class Run:
    """The loop and its state.

    Args:
        engine: where it runs.
        model: the model, not yet prepared.
        data: its examples.
        config: all of it.
        folder: of the checkpoints; None keeps none.
        loss: (x, outputs [N, K], y) to the loss of each example, [N].
        on_event: is told what happens, on the first process.
    """

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        data: TrainingData,
        config: FullTrainingConfig,
        *,
        folder: Path | None,
        loss: Loss,
        on_event: OnTraining,
    ) -> None:
        self.engine, self.data, self.config, self.folder = engine, data, config, folder
        self._loss, self._on_event = loss, on_event
        self.per_epoch = math.ceil(len(data.train) / config.batch_size)
        self.steps = self.per_epoch * config.epochs
        run = fingerprint(model, len(data.train), config)
        self.model = engine.prepare(model)
        optimizer = make_optimizer(engine.plain, config.optimizer)
        averages = None
        if config.averaging != "off":
            averages = Averages(engine.plain, config, self.steps)
        self.state = RunState(engine=engine, optimizer=optimizer, averages=averages, run=run)
        self.step = self.resumed_from = 0
        self.history: list[Evaluated] = []
        self.reached = False
        self._norm: float | None = None
        self._total = torch.zeros((), device=engine.device)
        self._since, self._seen, self._counted = time.perf_counter(), 0, 0

    def run(self) -> None:
        """Go on to the last step."""
        self._resume()
        self.model.train()
        if self.config.target_metric is not None and self.step:
            self.reached = self._evaluate()
        while self.step < self.steps and not self.reached:
            self._epoch(self.step // self.per_epoch)
        self._save()
        if self.state.averages is not None:
            self.state.averages.assign()
            recompute_statistics(self.engine.plain, self._inputs(), self.engine.device)
        if self.data.held_out is not None and not self._is_measured():
            self._evaluate(averaged=False)

    def _resume(self) -> None:
        found = checkpoints(self.folder) if self.folder is not None else []
        if found:
            self.step = self.resumed_from = self.state.load(found[-1])
            self._tell(Resumed(step=self.step))

    def _epoch(self, epoch: int) -> None:
        config, engine = self.config, self.engine
        done = self.step % self.per_epoch
        batches = epoch_rows(len(self.data.train), config.batch_size, config.seed, epoch)[done:]
        accumulation = engine.config.accumulation
        parts = [
            part_of(rows, engine.rank * accumulation + n, engine.world * accumulation)
            for rows in batches
            for n in range(accumulation)
        ]
        loaded = self.data.train.batches([rows for rows, _ in parts], engine.config.workers)
        counts = iter(counted for _, counted in parts)
        for rows in batches:
            self._one_step(self._parts(loaded, counts, accumulation, len(rows)), len(rows))
            self._after_step(epoch, len(rows))
            if self.reached:
                return

    def _parts(
        self, loaded: Iterator[tuple[Tensor, Tensor]], counts: Iterator[int], number: int, size: int
    ) -> Parts:
        device, parts = self.engine.device, []
        for _ in range(number):
            x, y = next(loaded)
            parts.append((x.to(device), y.to(device), next(counts) / size))
        return parts

    def _one_step(self, parts: Parts, size: int) -> None:
        config, optimizer = self.config, self.state.optimizer
        share = rate_share(config.schedule, self.step, self.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.learning_rate * share

        def batch() -> tuple[Tensor, Tensor]:
            return torch.cat([x for x, _, _ in parts]), torch.cat([y for _, y, _ in parts])

        loss = take_step(
            config, self.engine, optimizer, lambda: self._gradients(parts), batch, self.step
        )
        self._total += loss
        self._counted += 1
        self._seen += size

    def _gradients(self, parts: Parts) -> Tensor:
        """The mean loss of the whole batch, with its gradients in place.

        Each part's loss is its sum over the batch's size, times the processes: DDP and FSDP2 divide
        by them, so the gradient is that of the mean over the batch, however it was cut.
        """
        engine, optimizer = self.engine, self.state.optimizer
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4099 + engine.rank)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=engine.device)
        for n, (x, y, share) in enumerate(parts):
            last = n == len(parts) - 1
            engine.synchronise(last)
            with nullcontext() if last else engine.unsynchronised():
                loss = self._loss(x, self.model(x), y).sum() * share
                engine.backward(loss * engine.world)
            total += loss.detach()
        engine.total(total)
        if self.step % engine.config.check_every == 0 and not math.isfinite(float(total)):
            self._fail(parts)
        self._bound()
        return total

    def _bound(self) -> None:
        bound = self.config.optimizer.max_grad_norm
        if bound is None:
            return
        if self.engine.scaler is not None:
            self.engine.scaler.unscale_(self.state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.engine.plain.parameters(), bound)
        self._norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _fail(self, parts: Parts) -> None:
        """Say which layer, on every process.

        Raises:
            NonFiniteError: always.
        """
        found = ("", "")
        for x, y, _ in parts:
            found = find_layer(self.engine.plain, self.config.task, x, y)
            if found != ("", ""):
                break
        told = [words for words in self.engine.gathered("\n".join(found)) if words != "\n"]
        layer, _, what = (told[0] if told else "\n").partition("\n")
        kept = checkpoints(self.folder) if self.folder is not None else []
        where = f"The last good checkpoint is {kept[-1]}" if kept else "There is no checkpoint yet"
        culprit = f"layer {layer}: {what}" if layer else what or "no layer could be found"
        raise NonFiniteError(
            f"the loss of step {self.step + 1} is not finite; {culprit}. {where}. Lower "
            "optimizer.learning_rate, set optimizer.max_grad_norm=1, or lengthen schedule.warmup.",
            layer=layer,
            step=self.step + 1,
        )

    def _after_step(self, epoch: int, size: int) -> None:
        config = self.config
        if self.state.averages is not None:
            self.state.averages.update(self.step)
        self.step += 1
        if self.step % config.log_every == 0 or self.step == self.steps:
            self._log(epoch)
        if self.data.held_out is not None:
            every = config.evaluate_every or self.per_epoch
            if self.step % every == 0 or self.step == self.steps:
                self.reached = self._evaluate()
        if config.checkpoint_every and self.step % config.checkpoint_every == 0:
            self._save()

    def _log(self, epoch: int) -> None:
        now = time.perf_counter()
        self._tell(
            Stepped(
                step=self.step,
                steps=self.steps,
                epoch=epoch + 1,
                loss=float(self._total) / self._counted,
                learning_rate=self.state.optimizer.param_groups[0]["lr"],
                grad_norm=self._norm,
                examples_per_s=self._seen / max(now - self._since, 1e-9),
            )
        )
        self._total.zero_()
        self._since, self._seen, self._counted = now, 0, 0

    def _evaluate(self, *, averaged: bool = True) -> bool:
        """Measure what would come out now; whether it is good enough to end."""
        if self.data.held_out is None:
            return False
        averages, config = self.state.averages, self.config
        with averages.in_place() if averages is not None and averaged else nullcontext():
            loss, metric = evaluate(
                self.engine, self.data.held_out, config.task, self.engine.config.workers
            )
        self.history.append(Evaluated(step=self.step, loss=loss, metric=metric))
        self._tell(self.history[-1])
        target = config.target_metric
        if target is None:
            return False
        return metric >= target if config.task == "classification" else metric <= target

    def _is_measured(self) -> bool:
        """Whether the last evaluation is of what comes out."""
        fresh = bool(self.history) and self.history[-1].step == self.step
        return fresh and self.state.averages is None

    def _save(self) -> None:
        if self.folder is None or self._is_saved():
            return
        if not self.state.all_finite():
            self._fail_at_save()
        path = self.state.save(self.folder, self.step, self.config.keep)
        self._tell(Saved(step=self.step, path=str(path)))

    def _is_saved(self) -> bool:
        found = checkpoints(self.folder) if self.folder is not None else []
        return bool(found) and found[-1].name.endswith(f"{self.step:09d}")

    def _fail_at_save(self) -> None:
        rows = epoch_rows(len(self.data.train), 1, 0, 0)[:1]
        x, y = next(self.data.train.batches(rows, 0))
        self._fail([(x.to(self.engine.device), y.to(self.engine.device), 1.0)])

    def _inputs(self) -> Iterator[Tensor]:
        rows = epoch_rows(len(self.data.train), self.config.batch_size, self.config.seed, 0)
        for x, _ in self.data.train.batches(rows, 0):
            yield x

    def _tell(self, event: Evaluated | Resumed | Saved | Stepped) -> None:
        if self.engine.rank == 0:
            self._on_event(event)
