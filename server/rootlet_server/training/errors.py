"""What full training refuses, and how it fails.

```
RootletError
└── FullTrainingError            a base could not be trained, folded back or published
    ├── FullTrainingConfigError  an unknown key, an impossible value or combination; nothing ran
    ├── BaseDataError            examples that the model or the task cannot take
    ├── NonFiniteError           a loss or weight left the finite numbers; names the layer
    ├── BaseCheckpointError      a checkpoint that is damaged, or of another model or run
    ├── MemoryExhaustedError     out of memory; says what to turn on
    ├── MergeError               an adapter that does not belong to the base
    └── AlignmentError           feedback that points too far from the true gradient to publish
```
"""

from functools import partial
from typing import Any

from rootlet_runtime.errors import RootletError


class FullTrainingError(RootletError):
    """A base could not be trained, folded back or published."""


class FullTrainingConfigError(FullTrainingError, ValueError):
    """A configuration with an unknown key, an impossible value or combination; nothing ran."""


class BaseDataError(FullTrainingError, ValueError):
    """Examples that the model or the task cannot take."""


class NonFiniteError(FullTrainingError):
    """A loss or a weight left the finite numbers; the last good checkpoint is kept.

    Attributes:
        layer: path of the layer where it began; empty where none could be found.
        step: the step that would have been taken.
    """

    def __init__(self, message: str, *, layer: str, step: int) -> None:
        self.layer = layer
        self.step = step
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process; an exception's own calls the class with the message alone."""
        return partial(type(self), layer=self.layer, step=self.step), self.args


class BaseCheckpointError(FullTrainingError):
    """A checkpoint that is damaged, or belongs to another model or run."""


class MemoryExhaustedError(FullTrainingError):
    """Memory ran out; the message says what to turn on."""


class MergeError(FullTrainingError, ValueError):
    """An adapter that does not belong to the base."""


class AlignmentError(FullTrainingError):
    """A layer's feedback points too far from the true gradient to publish the bundle."""
