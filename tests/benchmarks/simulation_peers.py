"""The peers of the simulation benchmark: a tight torch loop, Flower on Ray, and pfl-research.

All of them train the same adapters from the same start on the same clients, by eager torch, and
weigh by examples. Each peer is a function without arguments that runs one round. Nothing of
rootlet's simulator is imported here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from models import EagerPeer
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TASK = "ROOTLET_BENCH_TASK"
PFL_FOLDER = Path.home() / ".cache" / "rootlet-bench" / "pfl"
BATCH, RATE = 10, 0.05


@dataclass(frozen=True)
class Task:
    """Clients and a start, in a folder that processes share.

    Attributes:
        x, y: all examples.
        starts: where each client's begin; one more at the end.
        model: the base, its adapters in place.
    """

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    model: nn.Module

    def client(self, number: int) -> tuple[Tensor, Tensor]:
        """One client's examples."""
        mine = slice(self.starts[number], self.starts[number + 1])
        return torch.from_numpy(np.array(self.x[mine])), torch.from_numpy(np.array(self.y[mine]))


def save_task(
    folder: Path, x: np.ndarray, y: np.ndarray, starts: np.ndarray, model: nn.Module,
    scaled_a: Mapping[str, Tensor], head: str,
) -> None:  # fmt: skip
    """Writes what :func:`load_task` reads."""
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.save(folder / "starts.npy", starts)
    torch.save(EagerPeer(model, scaled_a, head, RATE).model, folder / "model.pt")


@cache
def load_task(folder: str) -> Task:
    """The task; once a process."""
    torch.set_num_threads(1)
    path = Path(folder)
    return Task(
        x=np.load(path / "x.npy", mmap_mode="r"),
        y=np.load(path / "y.npy", mmap_mode="r"),
        starts=np.load(path / "starts.npy"),
        model=torch.load(path / "model.pt", weights_only=False),  # our own file, a moment old
    )


def learned(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What learns, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def train_client(model: nn.Module, x: Tensor, y: Tensor, epochs: int = 1) -> float:
    """One client's local training, as tight as eager torch allows; the last loss."""
    parameters = [p for _, p in learned(model)]
    loss = torch.zeros(())
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for rows in order.split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-RATE)
    return loss.item()


def loop_round(folder: Path, cohort: np.ndarray) -> Callable[[], None]:
    """Client after client in this process, summed as they come."""
    task = load_task(str(folder))
    parameters = [p for _, p in learned(task.model)]

    def run() -> None:
        start = [p.detach().clone() for p in parameters]
        total, weight = [torch.zeros_like(p) for p in start], 0
        for number in cohort.tolist():
            with torch.no_grad():
                torch._foreach_copy_(parameters, start)
            x, y = task.client(number)
            train_client(task.model, x, y)
            with torch.no_grad():
                torch._foreach_add_(total, parameters, alpha=len(x))
            weight += len(x)
        with torch.no_grad():
            torch._foreach_copy_(parameters, start)

    return run


def pfl_round(folder: Path, cohort: np.ndarray) -> Callable[[], None]:
    """pfl-research's own FederatedAveraging on its SimulatedBackend, in one process.

    Raises:
        SystemExit: pfl is not there, with how to get it.
    """
    sys.path.append(str(PFL_FOLDER))
    try:
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.data.dataset import Dataset
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
        from pfl.metrics import Weighted
        from pfl.model.pytorch import PyTorchModel
    except ImportError as error:
        raise SystemExit(
            f"{error}; pfl pins other versions than rootlet, so it lives beside it:\n"
            f"pip install --no-deps --target {PFL_FOLDER} pfl==0.6.0 multiprocess==0.70.16 "
            "dill==0.3.8 prv-accountant==0.2.0"
        ) from error
    task = load_task(str(folder))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.model

        def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:  # noqa: A002
            del eval
            return F.cross_entropy(self.net(x), y)

        def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Any]:  # noqa: A002
            del eval
            return {
                "loss": Weighted(F.cross_entropy(self.net(x), y, reduction="sum").item(), len(x))
            }

    model = Model()
    wrapped = PyTorchModel(
        model=model,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD([p for _, p in learned(model)], lr=1.0),
    )
    turn = iter(())

    def sampler() -> int:
        nonlocal turn
        number = next(turn, None)
        if number is None:
            turn = iter(cohort.tolist())
            number = next(turn)
        return number

    data = FederatedDataset(lambda number: Dataset(raw_data=list(task.client(number))), sampler)
    backend = SimulatedBackend(training_data=data, val_data=data)
    settings = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH
    )

    def run() -> None:
        FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=1, evaluation_frequency=1000,
                train_cohort_size=len(cohort), val_cohort_size=0,
            ),
            backend=backend, model=wrapped, model_train_params=settings,
            model_eval_params=NNEvalHyperParams(local_batch_size=1000),
            send_metrics_to_platform=False,
        )  # fmt: skip

    return run


def flower_apps(
    folder: Path, cohort: int, around: Callable[[Callable[[], None]], None]
) -> tuple[Any, Any]:
    """Flower's ServerApp with stock FedAvg and a ClientApp; ``around`` is given one round."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    os.environ[TASK] = str(folder)
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Any) -> Message:
        import simulation_peers as peers

        task = peers.load_task(os.environ[peers.TASK])
        for name, parameter in peers.learned(task.model):
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(message.content["arrays"][name].numpy().copy()))
        x, y = task.client(int(context.node_config["partition-id"]))
        loss = peers.train_client(task.model, x, y)
        arrays = {name: Array(p.detach().numpy()) for name, p in peers.learned(task.model)}
        metrics = MetricRecord({"num-examples": len(x), "loss": loss})
        return Message(
            RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
        )

    @server.main()
    def main(grid: Any, context: Any) -> None:
        del context
        task = load_task(str(folder))
        population = len(task.starts) - 1
        strategy = FedAvg(
            fraction_train=cohort / population, fraction_evaluate=0.0, min_train_nodes=1,
            min_available_nodes=population,
        )  # fmt: skip
        arrays = {name: Array(p.detach().numpy()) for name, p in learned(task.model)}

        def one_round() -> None:
            messages = strategy.configure_train(1, ArrayRecord(arrays), ConfigRecord(), grid)
            answers = grid.send_and_receive(messages, timeout=3600)
            strategy.aggregate_train(1, answers)

        around(one_round)

    return server, client
