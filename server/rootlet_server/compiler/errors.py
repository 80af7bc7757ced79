"""What the compiler refuses.

```
RootletError
└── CompileError               nothing was written
    ├── UnsupportedModelError  names the module path, the operator and the remedy
    ├── CalibrationError       calibration data that cannot calibrate: shape, dtype, non-finite,
    too few └── ExportError            the exported graph left the allowed operators or disagrees
    with the step
```
"""

from rootlet_runtime.errors import RootletError


class CompileError(RootletError):
    """A model could not be compiled; nothing was written."""


class UnsupportedModelError(CompileError):
    """The model holds something the compiler does not know."""

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        self.path = path
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{path or 'the model'}: {reason}. {remedy}")


class CalibrationError(CompileError):
    """The calibration data cannot calibrate this model."""


class ExportError(CompileError):
    """The exported graph is not the step it was made from."""
