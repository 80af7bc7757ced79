"""Examples from other libraries' data sets, by what these offer; none of them is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rootlet_server.errors import PopulationError

if TYPE_CHECKING:
    from rootlet_server.simulation.population import Examples


class TorchDataset(Protocol):
    """A map-style ``torch.utils.data.Dataset`` of (x, y)."""

    def __len__(self) -> int:
        """How many examples there are."""

    def __getitem__(self, index: int) -> Any:
        """One example and its label."""


class HuggingFaceDataset(Protocol):
    """A ``datasets.Dataset``."""

    column_names: list[str]

    def with_format(self, kind: str) -> Any:
        """The same rows as another kind of arrays."""


class Partitioner(Protocol):
    """A ``flwr_datasets.partitioner.Partitioner`` that has its data set."""

    num_partitions: int

    def load_partition(self, partition_id: int) -> HuggingFaceDataset:
        """One client's rows."""


def from_torch(dataset: TorchDataset) -> Examples:
    """All examples of a torch data set as two arrays, to be dealt out by ``partitions``."""
    pairs = [dataset[index] for index in range(len(dataset))]
    if not pairs:
        raise PopulationError("the torch data set is empty; give at least one example")
    return np.stack([np.asarray(x) for x, _ in pairs]), np.array([np.asarray(y) for _, y in pairs])


def from_hugging_face(dataset: HuggingFaceDataset, *, x: str, y: str) -> Examples:
    """Two columns of a Hugging Face data set as arrays.

    Raises:
        PopulationError: a column is not there, or its rows differ in shape.
    """
    for name in (x, y):
        if name not in dataset.column_names:
            raise PopulationError(
                f"column {name!r}: the data set has {', '.join(dataset.column_names)}"
            )
    columns = dataset.with_format("numpy")
    first, second = np.asarray(columns[x]), np.asarray(columns[y])
    if first.dtype == object:
        raise PopulationError(f"column {x!r}: rows differ in shape; bring them to one first")
    return first, second


@dataclass(frozen=True, kw_only=True, eq=False)
class PartitionerPopulation:
    """The partitions of a flwr-datasets partitioner, one client each, loaded when asked for.

    Attributes:
        partitioner: with its data set.
        x, y: names of the columns.
    """

    partitioner: Partitioner
    x: str
    y: str

    def __len__(self) -> int:
        return int(self.partitioner.num_partitions)

    def examples(self, client: int) -> Examples:
        """The partition's two columns."""
        return from_hugging_face(self.partitioner.load_partition(client), x=self.x, y=self.y)
