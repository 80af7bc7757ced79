"""The state of one of Flower's strategies as named arrays: taken out, and put back.

A simulation and a server both keep it with the adapter, so that what was interrupted ends with the
same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_server.errors import StrategyStateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from flwr.serverapp.strategy import Strategy

    Arrays = Mapping[str, npt.NDArray[Any]]


def state_of(strategy: Strategy) -> dict[str, npt.NDArray[Any]]:
    """A strategy's own arrays and numbers, such as a server optimiser's moments.

    Raises:
        StrategyStateError: it holds something that is neither.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, bool | str) or callable(value):
            continue
        if isinstance(value, int | float):
            found[name] = np.array(value)
        elif isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, dict) and value and _all_arrays(value.values()):
            found |= {f"{name}/{key}": each for key, each in value.items()}
        elif isinstance(value, list) and value and _all_arrays(value):
            found |= {f"{name}[{index:06d}]": each for index, each in enumerate(value)}
        elif hasattr(value, "to_numpy_ndarrays"):
            found |= {f"{name}:{key}": array.numpy() for key, array in value.items()}
        elif value is not None and not (isinstance(value, dict | list) and not value):
            raise StrategyStateError(
                f"the strategy's {name} is a {type(value).__name__}, which cannot be saved; run "
                "without a state directory"
            )
    return found


def restore(strategy: Strategy, saved: Arrays, order: Sequence[str]) -> None:
    """Puts back what :func:`state_of` found.

    Args:
        strategy: as it was made.
        saved: its state.
        order: the adapter's names, in the order in which clients answer: strategies pair tensors
            by place.
    """
    from flwr.app import Array, ArrayRecord  # noqa: PLC0415

    groups: dict[str, dict[str, npt.NDArray[Any]]] = {}
    records: dict[str, dict[str, npt.NDArray[Any]]] = {}
    lists: dict[str, list[npt.NDArray[Any]]] = {}
    for key in sorted(saved):
        for mark, into in (("/", groups), (":", records)):
            name, found, rest = key.partition(mark)
            if found:
                into.setdefault(name, {})[rest] = saved[key]
                break
        else:
            name, found, _ = key.partition("[")
            if found:
                lists.setdefault(name, []).append(saved[key])
            elif saved[key].ndim == 0 and not isinstance(vars(strategy).get(name), np.ndarray):
                setattr(strategy, name, saved[key].item())
            else:
                setattr(strategy, name, saved[key])
    for name, values in (*groups.items(), *lists.items()):
        setattr(strategy, name, values)
    for name, arrays in records.items():
        names = [k for k in order if k in arrays] + [k for k in arrays if k not in order]
        setattr(strategy, name, ArrayRecord({k: Array(arrays[k]) for k in names}))


def _all_arrays(values: Any) -> bool:
    return all(isinstance(value, np.ndarray) for value in values)
