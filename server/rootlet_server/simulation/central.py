"""The server's own measurement of an adapter, on examples that no client has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_runtime.errors import DataError
from rootlet_runtime.examples import check_examples
from rootlet_server.errors import PopulationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from rootlet_runtime.manifest import Manifest
    from rootlet_server.simulation.population import Examples
    from rootlet_server.simulation.work import Worker

    Arrays = Mapping[str, npt.NDArray[Any]]

PIECE, AT_ONCE = 64, 32  # stacked as if they were clients


class CentralTest:
    """Held-out examples.

    Args:
        worker: measures.
        test: the examples.
        manifest: of the bundle.

    Raises:
        PopulationError: the examples do not fit the bundle.
    """

    def __init__(self, worker: Worker, test: Examples, manifest: Manifest) -> None:
        try:
            x, y = check_examples(*test, manifest)
        except DataError as error:
            raise PopulationError(f"test: {error}") from error
        starts = range(0, len(x), PIECE)
        self._pieces = [(x[s : s + PIECE], y[s : s + PIECE]) for s in starts]
        self._worker = worker

    def measure(self, adapter: Arrays) -> tuple[float, float]:
        """Mean loss and metric."""
        sums = np.zeros(2)
        for start in range(0, len(self._pieces), AT_ONCE):
            part = self._pieces[start : start + AT_ONCE]
            sizes = np.array([len(x) for x, _ in part])
            sums += np.stack(self._worker.measure(adapter, part)) @ sizes
        loss, metric = sums / sum(len(x) for x, _ in self._pieces)
        return float(loss), float(metric)
