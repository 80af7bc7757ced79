"""Differentially private training of a base: Opacus clips; samples, noise and account are ours.

Each step draws a Poisson sample, every example with probability q = batch_size / examples, bounds
each example's gradient by fast gradient clipping (Lee & Kifer 2021: the norms of a first backward
pass weigh the losses of a second, so that no example's gradient is stored), adds noise of
``noise_multiplier * max_grad_norm``, and divides by the expected batch. Samples and noise come
from the seam that devices use: secure draws, exact discrete Gaussian noise on a grid
(``rootlet_runtime.sampling``, ``rootlet_runtime.noise``). What is spent is a ``PrivacySpent``, the
event that a device reports too, for ``rootlet_server.privacy.epsilon``.

Guarantee: the weights after the run, and after every step, are (epsilon, delta)-differentially
private for one example added or removed. The number of examples is taken as public. Held-out
examples are measured in the open and are not protected; losses of private batches are not told.

Edge cases: an empty sample is a step of noise; there are no checkpoints, so no sample or noise is
drawn twice; batch normalisation is refused, for it couples examples; an example whose gradient is
not finite ends the run before its step.
"""

from __future__ import annotations

import math
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from rootlet_runtime.private_fit import noise_std, released, sensitivity
from rootlet_runtime.private_report import PrivacySpent
from rootlet_runtime.sampling import poisson_sample
from rootlet_server.privacy import noise_multiplier_for
from rootlet_server.privacy.charges import charge
from rootlet_server.training.errors import FullTrainingConfigError, NonFiniteError
from rootlet_server.training.evaluate import evaluate_model
from rootlet_server.training.events import Evaluated
from rootlet_server.training.losses import example_losses
from rootlet_server.training.memory import memory_advised
from rootlet_server.training.optimizers import make_optimizer
from rootlet_server.training.schedules import rate_share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import numpy.typing as npt
    from torch import Tensor

    from rootlet_server.training.config import FullTrainingConfig
    from rootlet_server.training.data import TrainingData
    from rootlet_server.training.events import OnTraining
    from rootlet_server.training.trained_base import TrainedBase

    AnyArray = npt.NDArray[Any]


def planned_spending(config: FullTrainingConfig, examples: int) -> PrivacySpent:
    """What a run will have spent: known before it begins.

    Raises:
        FullTrainingConfigError: no privacy was asked for, or the batch is larger than the data.
    """
    privacy = config.privacy
    if privacy is None or config.batch_size > examples:
        raise FullTrainingConfigError(
            f"batch_size={config.batch_size}, examples={examples}, privacy={privacy}: private "
            "training draws batch_size / examples of them a step, which must be at most 1."
        )
    rate, steps = (
        config.batch_size / examples,
        config.epochs * math.ceil(examples / config.batch_size),
    )
    noise = privacy.noise_multiplier
    if noise is None and privacy.target_epsilon is not None:
        noise = noise_multiplier_for(
            privacy.target_epsilon, privacy.delta, sample_rate=rate, steps=steps
        )
    return PrivacySpent(
        steps=steps,
        sample_rate=rate,
        noise_multiplier=float(noise or 0.0),
        max_grad_norm=privacy.max_grad_norm,
    )


def train_private(
    model: nn.Module, data: TrainingData, config: FullTrainingConfig, *, on_event: OnTraining
) -> TrainedBase:
    """Train privately; called by ``train`` where ``config.privacy`` is set.

    Raises:
        FullTrainingConfigError: a layer that Opacus cannot clip, or that couples examples.
        AccountingError: the ledger's budget would be exceeded.
        LedgerError: the ledger is broken, or cannot be written.
        NonFiniteError: a weight left the finite numbers.
        MemoryExhaustedError: memory ran out.
    """
    from rootlet_server.training.trained_base import TrainedBase  # noqa: PLC0415

    start, history = time.perf_counter(), []
    spent = planned_spending(config, len(data.train))
    device = torch.device(
        "cuda" if torch.cuda.is_available() and config.engine.device != "cpu" else "cpu"
    )
    model.to(device).train()
    _refuse_coupling(model)
    if config.privacy is not None and config.privacy.ledger is not None:
        charge(
            Path(config.privacy.ledger),
            spent,
            delta=config.privacy.delta,
            budget_epsilon=config.privacy.budget_epsilon,
        )
    with memory_advised(config), _clipping(model, spent, config) as step:
        for number in range(spent.steps):
            share = rate_share(config.schedule, number, spent.steps)
            rows = torch.from_numpy(poisson_sample(len(data.train), spent.sample_rate))
            batch = None
            if len(rows):
                x, y = next(data.train.batches([rows], 0))
                batch = x.to(device), y.to(device)
            step(batch, share, number + 1)
            _check_finite(model, number + 1)
    loss = metric = None
    if data.held_out is not None:
        loss, metric = evaluate_model(model, data.held_out, config.task, device)
        history.append(Evaluated(step=spent.steps, loss=loss, metric=metric))
        on_event(history[-1])
    return TrainedBase(
        model=model.cpu().eval(),
        task=config.task,
        steps=spent.steps,
        resumed_from_step=0,
        loss=loss,
        metric=metric,
        history=tuple(history),
        reached=False,
        seconds=time.perf_counter() - start,
        spent=spent,
    )


def _refuse_coupling(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise FullTrainingConfigError(
                f"{path}: {type(module).__name__} couples the examples of a batch, so no bound on "
                "one example's gradient holds. Use GroupNorm or LayerNorm."
            )


class _Step:
    """One private step: two backward passes, noise, the optimiser."""

    def __init__(self, model: nn.Module, spent: PrivacySpent, config: FullTrainingConfig) -> None:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415

        self._config, self._spent = config, spent
        try:
            self.module = GradSampleModuleFastGradientClipping(
                model, max_grad_norm=spent.max_grad_norm, use_ghost_clipping=True, strict=True
            )
        except NotImplementedError as error:
            raise FullTrainingConfigError(
                f"privacy: {str(error).splitlines()[0]}. Use layers that Opacus knows."
            ) from error
        self._optimizer = make_optimizer(model, config.optimizer)
        self._learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # The sum is made at once: as many terms as a sample has but once in 10^12.
        most = math.ceil(config.batch_size + 9 * math.sqrt(config.batch_size) + 24)
        change = sensitivity(spent.max_grad_norm, expected=config.batch_size, batch=most)
        values = sum(p.numel() for p in self._learning.values())
        self._std = noise_std(spent.noise_multiplier, change, values)

    def __call__(self, batch: tuple[Tensor, Tensor] | None, share: float, step: int) -> None:
        """Take one step; None is an empty sample."""
        sums = self.clipped_sums(batch)
        for name, array in sums.items():
            if not np.isfinite(array).all():
                raise NonFiniteError(
                    f"the clipped gradient of {name} is not finite; nothing of this step was "
                    "released. Remove examples with extreme values, or lower the learning rate.",
                    layer=name.rpartition(".")[0],
                    step=step,
                )
        noisy = released(sums, self._std)
        for name, p in self._learning.items():
            p.grad = torch.from_numpy(noisy[name]).to(p) / self._config.batch_size
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.optimizer.learning_rate * share
        self._optimizer.step()

    def clipped_sums(self, batch: tuple[Tensor, Tensor] | None) -> dict[str, AnyArray]:
        """``sum_n min(1, C / |g_n|) g_n`` by parameter."""
        if batch is None:
            return {n: np.zeros(tuple(p.shape), np.float32) for n, p in self._learning.items()}
        self._optimizer.zero_grad(set_to_none=True)
        losses = example_losses(self._config.task, self.module(batch[0]), batch[1])
        with warnings.catch_warnings():
            # The first layer's inputs need no gradient; its hook reads that of its outputs.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses.mean().backward(retain_graph=True)
            coefficients = self.module.get_clipping_coef().detach()
            self._optimizer.zero_grad(set_to_none=True)
            self.module.disable_hooks()
            (coefficients * losses).sum().backward()
            self.module.enable_hooks()
        return {
            name: (torch.zeros_like(p) if p.grad is None else p.grad).cpu().numpy()
            for name, p in self._learning.items()
        }


@contextmanager
def _clipping(model: nn.Module, spent: PrivacySpent, config: FullTrainingConfig) -> Iterator[_Step]:
    """A step whose hooks are gone from the model afterwards."""
    step = _Step(model, spent, config)
    try:
        yield step
    finally:
        step.module.remove_hooks()
        for p in model.parameters():
            for name in ("grad_sample", "summed_grad", "_norm_sample", "_forward_counter"):
                if hasattr(p, name):
                    delattr(p, name)


def _check_finite(model: nn.Module, step: int) -> None:
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            layer = name.rpartition(".")[0]
            raise NonFiniteError(
                f"step {step}: {name} is not finite. Lower optimizer.learning_rate.",
                layer=layer,
                step=step,
            )
