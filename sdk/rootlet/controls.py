"""A device's control variate: what its own gradients were in its last round of SCAFFOLD."""

import logging
from collections.abc import Mapping

import numpy as np

from rootlet.errors import RequestRefusedError
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.control_variates import ControlVariates
from rootlet_runtime.errors import CheckpointError
from rootlet_runtime.fit import FitResult
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.tensors import Arrays

_NAME = "control"
_log = logging.getLogger(__name__)


class Controls:
    """Keeps it from round to round.

    Args:
        files: Where; None for as long as this lasts.
    """

    def __init__(self, files: ArrayFiles | None = None) -> None:
        self._files = files
        self._own: Arrays = {}
        if files is not None:
            try:
                found = files.read(_NAME)
            except CheckpointError as error:
                _log.warning("the control variate starts anew: %s", error)
                found = None
            self._own = {} if found is None else found[0]

    def begin(self, mean: Mapping[str, np.ndarray], manifest: Manifest) -> ControlVariates:
        """A round's correction; the device's own is zero at first.

        Args:
            mean: c, as the server sent it.
            manifest: The bundle's.

        Raises:
            RequestRefusedError: The bundle's graph does not step by plain SGD, or the arrays are
                not those of its adapter.
        """
        if manifest.optimizer != "sgd":
            raise RequestRefusedError(
                f"the bundle steps by {manifest.optimizer}, and control variates correct plain "
                "SGD: compile it with optimizer sgd, or take another strategy"
            )
        shapes = {spec.name: tuple(size or 0 for size in spec.shape) for spec in manifest.adapter}
        if {name: array.shape for name, array in mean.items()} != shapes:
            raise RequestRefusedError("the control arrays are not of the adapter's shapes")
        own = self._own
        if {name: array.shape for name, array in own.items()} != shapes:
            own = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        return ControlVariates(own=own, mean=dict(mean))

    def finish(
        self, control: ControlVariates, received: Arrays, trained: Arrays, result: FitResult
    ) -> Arrays:
        """What changed in the device's own, which is kept.

        A training that was resumed, or went back to an earlier adapter, does not know the rates of
        all its steps: the control variate stays, and nothing has changed.
        """
        if result.rolled_back or result.resumed_from_step or not control.rates:
            return {name: np.zeros_like(array) for name, array in control.own.items()}
        self._own = control.next_own(received, trained)
        if self._files is not None:
            try:
                self._files.write(_NAME, self._own, {})
            except CheckpointError as error:
                _log.warning("the control variate was not kept: %s", error)
        return {name: array - control.own[name] for name, array in self._own.items()}
