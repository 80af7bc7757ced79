"""Examples that lie in a file or in memory, as a data source for a device."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from rootlet.store import Examples, is_held_out
from rootlet_runtime.errors import DataError

AnyArray = npt.NDArray[np.generic]


@dataclass(frozen=True)
class ArrayData:
    """Examples in memory, in two parts: ``(x [N, ...], y [N, ...])`` each."""

    training: Examples
    held_out: Examples

    @classmethod
    def split(cls, examples: Examples, every: int = 5) -> "ArrayData":
        """Holds out one example of each ``every``, at the places that `ExampleStore` would draw."""
        x, y = examples
        held_out = np.array([is_held_out(number, every) for number in range(len(x))], bool)
        return cls((x[~held_out], y[~held_out]), (x[held_out], y[held_out]))

    def train(self) -> Examples:
        """The examples to learn from."""
        return self.training

    def holdout(self) -> Examples:
        """The examples kept from training."""
        return self.held_out


def load_npz(path: Path) -> Examples:
    """Reads the arrays ``x`` and ``y`` of an ``.npz`` file; nothing in it is executed.

    Raises:
        DataError: The file cannot be read, or does not hold ``x`` and ``y`` of equal length.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise DataError(
            f"{path} is not an .npz file with arrays x and y ({error}): "
            "write it with numpy.savez(path, x=x, y=y)"
        ) from error
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise DataError(
            f"{path} holds x of shape {x.shape} and y of shape {y.shape}: "
            "both need one row for each example"
        )
    return x, y
