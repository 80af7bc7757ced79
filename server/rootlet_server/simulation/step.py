"""The pure step, stacked: one call trains K clients on a batch each.

Shape legend: K clients, B examples of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rootlet_server.errors import NotVectorisableError
from rootlet_server.simulation.graph import TorchGraph, load_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_runtime.bundle import Bundle
    from rootlet_runtime.manifest import Manifest

    Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StackedStep:
    """The graphs of a bundle under ``torch.func.vmap``.

    Attributes:
        manifest: of the bundle.
        graphs: ``train`` and ``evaluate``, and ``encode`` where there is one.
    """

    manifest: Manifest
    graphs: Mapping[str, TorchGraph]

    def train(  # noqa: PLR0917 (the order of the graph's inputs)
        self,
        adapter: Tensors,
        state: Tensors,
        x: Tensor,
        y: Tensor,
        w: Tensor,
        learning_rate: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One training step of every client.

        Args:
            adapter: [K, ...] by name.
            state: the optimiser's, [K, ...] by name.
            x: [K, B, ...], encoded already where the model is cut.
            y: [K, B] or [K, B, outputs].
            w: [K, B]; 0 leaves an example out.
            learning_rate: [K].
            step: [K], counted from 1.

        Returns:
            Loss [K], metric [K], the new adapters and the new states.
        """
        values = {"x": x, "y": y, "w": w, "learning_rate": learning_rate, "step": step}
        values |= {f"adapter/{name}": value for name, value in adapter.items()}
        values |= {f"optimizer/{name}": value for name, value in state.items()}
        if self.manifest.distils:  # no teacher speaks in a round
            outputs = self.manifest.num_outputs
            values["teacher"] = torch.zeros(*w.shape, outputs)
            values["teacher_weight"] = torch.zeros_like(w)
        graph = self.graphs["train"]
        # a plain function: vmap takes the repr of anything else, with all its tensors
        stacked = torch.func.vmap(lambda given: graph(given))  # noqa: PLW0108
        found = stacked({name: values[name] for name in graph.inputs})
        return (
            found["loss"],
            found["metric"],
            {name: found[f"next/adapter/{name}"] for name in adapter},
            {name: found[f"next/optimizer/{name}"] for name in state},
        )

    def evaluate(
        self, adapter: Tensors, x: Tensor, y: Tensor, w: Tensor, *, shared: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over each client's batch of loss, metric and weight, [K].

        Args:
            adapter: [K, ...] by name; without K where it is ``shared`` by all clients.
            x: as for :meth:`train`.
            y: as for :meth:`train`.
            w: as for :meth:`train`.
            shared: whether one adapter serves all.
        """
        batch = {"x": x, "y": y, "w": w}
        given = {f"adapter/{name}": value for name, value in adapter.items()}
        graph = self.graphs["evaluate"]
        stacked = torch.func.vmap(
            lambda a, b: graph({**a, **b}), in_dims=(None if shared else 0, 0)
        )
        found = stacked(given, batch)
        return found["loss_sum"], found["metric_sum"], found["weight_sum"]

    def encode(self, x: Tensor) -> Tensor:
        """What the train graph takes for these examples, [N, ...]."""
        return self.graphs["encode"]({"x": x})["latent"] if "encode" in self.graphs else x

    def initial_state(self, clients: int) -> dict[str, Tensor]:
        """An optimiser that starts anew for each client."""
        return {
            spec.name: torch.zeros(clients, *(int(size or 0) for size in spec.shape))
            for spec in self.manifest.optimizer_state
        }


def load_step(bundle: Bundle) -> StackedStep:
    """The step of a bundle, tried once on two clients.

    Raises:
        NotVectorisableError: it cannot be stacked, and why.
    """
    roles = ["train", "evaluate", *(["encode"] if bundle.manifest.latent else [])]
    step = StackedStep(
        manifest=bundle.manifest, graphs={role: load_graph(bundle, role) for role in roles}
    )
    try:
        _try(step, bundle)
    except NotVectorisableError:
        raise
    except Exception as error:
        raise NotVectorisableError(
            f"torch.func.vmap cannot stack the train graph ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:300] if str(error) else 'no reason given'}); simulate "
            "it one client at a time, by vectorise=False"
        ) from error
    return step


def _try(step: StackedStep, bundle: Bundle) -> None:
    clients, size = 2, 2
    manifest = step.manifest
    rows = clients * size
    with torch.no_grad():
        x = step.encode(
            torch.zeros(rows, *_sizes(manifest.x.shape), dtype=_torch(manifest.x.dtype))
        )
        y = torch.zeros(clients, size, *_sizes(manifest.y.shape), dtype=_torch(manifest.y.dtype))
        step.train(
            {
                name: torch.from_numpy(np.stack([value] * clients))
                for name, value in bundle.initial_adapter().items()
            },
            step.initial_state(clients),
            x.reshape(clients, size, *x.shape[1:]),
            y,
            torch.ones(clients, size),
            torch.full((clients,), 0.1),
            torch.ones(clients),
        )


def _sizes(shape: tuple[int | None, ...]) -> list[int]:
    return [int(size or 0) for size in shape[1:]]


def _torch(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found
