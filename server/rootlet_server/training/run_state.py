"""What of a run goes into a checkpoint and comes back: weights, optimiser, averages, residues."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rootlet_server.training import checkpoint
from rootlet_server.training.packing import blank_tensors, pack, unpack

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from rootlet_server.training.averages import Averages
    from rootlet_server.training.config import FullTrainingConfig
    from rootlet_server.training.engine import Engine


def fingerprint(model: nn.Module, examples: int, config: FullTrainingConfig) -> dict[str, Any]:
    """What a checkpoint must share with the run that takes it up."""
    shapes = [(name, list(t.shape), str(t.dtype)) for name, t in model.state_dict().items()]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()
    run = {"model": digest, "examples": examples, "config": config.describe()}
    plain: dict[str, Any] = json.loads(json.dumps(run))
    return plain


def local_part(tensor: Any) -> Tensor:
    """What this process holds of a tensor, sharded or not."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The parts of a run that change from step to step.

    Attributes:
        engine: holds the model, the scaler and the residues of compression.
        optimizer: the optimiser.
        averages: of the weights; None without.
        run: the fingerprint.
    """

    engine: Engine
    optimizer: Optimizer
    averages: Averages | None
    run: dict[str, Any]

    def save(self, folder: Path, step: int, keep: int) -> Path:
        """Write a checkpoint; all processes call it together."""
        tensors = self._model_tensors()
        plain: dict[str, Any] = {"world": self.engine.world}
        plain["optimizer"] = {
            name: pack(self.optimizer.state[p], f"optimizer/{name}", tensors)
            for name, p in self._parameters().items()
            if p in self.optimizer.state
        }
        plain["groups"] = [
            pack({k: v for k, v in group.items() if k != "params"}, f"group/{n}", tensors)
            for n, group in enumerate(self.optimizer.param_groups)
        ]
        if self.averages is not None:
            plain["averaged"] = self.averages.count
        if self.engine.scaler is not None:
            plain["scaler"] = self.engine.scaler.state_dict()
        return checkpoint.save(
            folder, self.engine, step=step, run=self.run, plain=plain, tensors=tensors, keep=keep
        )

    def load(self, path: Path) -> int:
        """Take up a checkpoint; returns the steps it had taken."""
        header = checkpoint.read_header(path, self.run)
        tensors = self._model_tensors(world=header.plain["world"])
        parameters = self._parameters()

        def blank(
            key: str, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
        ) -> Tensor:
            p: Any = parameters.get(key.split("/")[1])
            if isinstance(p, DTensor) and p.shape == shape:
                return torch.zeros_like(p, dtype=dtype)
            device = "cpu" if p is None or not shape else p.device
            return torch.empty_strided(shape, stride, dtype=dtype, device=device)

        saved = header.plain["optimizer"]
        state = blank_tensors(list(saved.values()), blank)
        state |= blank_tensors(header.plain["groups"], blank)
        checkpoint.load_tensors(path, self.engine, tensors | state)
        for name, skeleton in saved.items():
            self.optimizer.state[parameters[name]] = unpack(skeleton, state)
        for group, skeleton in zip(
            self.optimizer.param_groups, header.plain["groups"], strict=True
        ):
            group.update(unpack(skeleton, state))
        if self.averages is not None:
            self.averages.count = header.plain["averaged"]
        if self.engine.scaler is not None:
            self.engine.scaler.load_state_dict(header.plain["scaler"])
        return header.step

    def all_finite(self) -> bool:
        """Whether the weights may be kept; the same answer on every process."""
        ours = all(bool(local_part(p).isfinite().all()) for p in self.engine.plain.parameters())
        return float(self.engine.total(torch.tensor(float(not ours)).to(self.engine.device))) == 0

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.engine.plain.named_parameters())

    def _model_tensors(self, world: int | None = None) -> dict[str, Tensor]:
        """The tensors themselves, so that reading into them is loading them."""
        tensors = {f"model/{k}": v.detach() for k, v in self.engine.plain.state_dict().items()}
        if self.averages is not None:
            tensors |= {f"average/{n}": v for n, v in enumerate(self.averages.values)}
        compression = self.engine.compression
        if compression is not None and world in (None, self.engine.world):
            prefix = f"rank{self.engine.rank}/unsent"
            tensors |= {f"{prefix}/{name}": t for name, t in compression.errors.items()}
        return tensors
