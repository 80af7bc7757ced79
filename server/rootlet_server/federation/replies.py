"""What of a device's answer may enter an average.

A device is not trusted: its reply must carry exactly the records, names, shapes and dtypes that
were asked for, finite throughout, and a number of examples within bounds. Anything else is left
out, with the reason, and the round goes on without it.
"""

import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from rootlet.compression import UPDATE, Compression
from rootlet.errors import ProtocolError, RecordError
from rootlet.feedback_record import MAX_VERSION
from rootlet.fleet.npy import from_npy
from rootlet.protocol import CONTROL
from rootlet_server.errors import ReplyError

NUM_EXAMPLES = "num-examples"
_TRAIN_METRICS = ("train_s", "energy_estimated_j", "bytes_down", "bytes_up")
FEEDBACK_VERSION = "feedback_version"
_NPY_HEADER_BYTES = 16_384
_MAX_FIGURE = 1e30  # so that no sum over devices, weighted by examples, leaves the finite numbers


def check_train_reply(
    message: Message,
    *,
    received: Mapping[str, np.ndarray],
    metric: str,
    max_examples: int,
    compression: Compression | None = None,
    controlled: bool = False,
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Check an answer to a `train` request.

    Args:
        message: The answer.
        received: The adapter that the device was sent; its names and shapes are binding.
        metric: `accuracy` or `error`.
        max_examples: The largest number of examples by which one device may weigh; a larger one
            is cut to it.
        compression: How the update was asked for; None for the adapter itself.
        controlled: Whether a control variate was asked for.

    Returns:
        The device's metrics, with the `feedback_version` that it may have told, its trained
        adapter, in the order of `received`, and what changed in its control variate.

    Raises:
        ReplyError: the answer may not be aggregated.
    """
    kind = "arrays" if compression is None else UPDATE
    _check_records(message, (kind, *((CONTROL,) if controlled else ()), "metrics"))
    control = None
    if controlled:
        control = _check_arrays(message.content.array_records[CONTROL], received)
    arrays = message.content.array_records[kind]
    if compression is None:
        adapter = _check_arrays(arrays, received)
    else:
        adapter = _moved(arrays, received, compression)
    metrics = message.content.metric_records["metrics"]
    names: tuple[str, ...] = (
        NUM_EXAMPLES,
        "loss",
        f"{metric}_received",
        f"{metric}_trained",
        *_TRAIN_METRICS,
    )
    if FEEDBACK_VERSION in metrics:
        names += (FEEDBACK_VERSION,)
    return _check_metrics(metrics, names, max_examples), adapter, control


def check_private_reply(
    message: Message, *, received: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Check an answer to a `train` request with terms of privacy: it tells nothing but an adapter.

    Returns:
        Its size as a metric, and the adapter.

    Raises:
        ReplyError: the answer may not be aggregated.
    """
    _check_records(message, ("arrays", "metrics"))
    adapter = _check_arrays(message.content.array_records["arrays"], received)
    if set(message.content.metric_records["metrics"]) != {"bytes_up"}:
        raise ReplyError(
            f"the metrics are {_short(message.content.metric_records['metrics'])}; a private round "
            "tells bytes_up alone"
        )
    return {"bytes_up": float(sum(array.nbytes for array in adapter.values()))}, adapter


def check_evaluate_reply(message: Message, *, metric: str, max_examples: int) -> dict[str, float]:
    """Check an answer to an `evaluate` request, as `check_train_reply` does.

    Returns:
        The device's metrics.

    Raises:
        ReplyError: the answer may not be aggregated.
    """
    _check_records(message, ("metrics",))
    names = (NUM_EXAMPLES, "loss", f"{metric}_received")
    return _check_metrics(message.content.metric_records["metrics"], names, max_examples)


def _check_records(message: Message, names: tuple[str, ...]) -> None:
    if message.has_error():
        error = message.error
        raise ReplyError(f"the device answered with error {error.code}: {str(error.reason)[:500]}")
    if set(message.content) != set(names):
        raise ReplyError(
            f"the reply holds the records {_short(message.content)}; expected {', '.join(names)}"
        )
    for name in names:
        kind = MetricRecord if name == "metrics" else ArrayRecord
        if not isinstance(message.content[name], kind):
            raise ReplyError(f"the record {name!r} is not an {kind.__name__}")


def _check_arrays(arrays: ArrayRecord, received: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors, in the order of `received`."""
    if set(arrays) != set(received):
        raise ReplyError(
            f"the adapter holds {_short(arrays)}; expected {', '.join(sorted(received))[:300]}"
        )
    found: dict[str, np.ndarray] = {}
    for name, expected in received.items():
        found[name] = tensor = _decode(name, arrays[name], expected)
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise ReplyError(
                f"{name} is {tensor.dtype}{list(tensor.shape)}; expected "
                f"{expected.dtype}{list(expected.shape)}"
            )
        if not np.isfinite(tensor).all():
            raise ReplyError(f"{name} holds a value that is not finite")
    return found


def _moved(
    arrays: ArrayRecord, received: Mapping[str, np.ndarray], compression: Compression
) -> dict[str, np.ndarray]:
    """The received adapter, moved by an update that travelled compressed."""
    sent = _check_arrays(arrays, compression.layout(received))
    try:
        update = compression.decode(sent, received)
    except RecordError as error:
        raise ReplyError(str(error)) from None
    with np.errstate(over="ignore", invalid="ignore"):
        adapter = {name: value + update[name] for name, value in received.items()}
    for name, value in adapter.items():
        if not np.isfinite(value).all():
            raise ReplyError(f"{name} holds a value that is not finite, once moved by the update")
    return adapter


def _decode(name: str, array: Array, expected: np.ndarray) -> np.ndarray:
    """The tensor, after its size is known to be that of `expected` and a header."""
    if array.stype != "numpy.ndarray":
        raise ReplyError(f"{name} is serialised as {array.stype!r}; expected 'numpy.ndarray'")
    if len(array.data) > expected.nbytes + _NPY_HEADER_BYTES:
        raise ReplyError(
            f"{name} takes {len(array.data)} bytes; {expected.dtype}{list(expected.shape)} takes "
            f"{expected.nbytes}"
        )
    try:
        return from_npy(bytearray(array.data))
    except ProtocolError as error:
        raise ReplyError(f"{name}: {error}") from None


def _check_metrics(
    metrics: MetricRecord, names: tuple[str, ...], max_examples: int
) -> dict[str, float]:
    if set(metrics) != set(names):
        raise ReplyError(f"the metrics are {_short(metrics)}; expected {', '.join(names)}")
    values: dict[str, float] = {}
    for name in names:
        value = metrics[name]
        if isinstance(value, list) or not math.isfinite(value):
            raise ReplyError(f"{name} is {str(value)[:80]}; expected one finite number")
        low, high = _bounds(name)
        if not low <= value <= high:
            raise ReplyError(f"{name} is {value:g}; expected {low:g} to {high:g}")
        values[name] = value
    count = values[NUM_EXAMPLES]
    if not isinstance(count, int) or count < 1:
        raise ReplyError(f"{NUM_EXAMPLES} is {count}; expected a whole number of at least 1")
    if not isinstance(values.get(FEEDBACK_VERSION, 1), int):
        raise ReplyError(
            f"{FEEDBACK_VERSION} is {values[FEEDBACK_VERSION]:g}; expected a whole number"
        )
    values[NUM_EXAMPLES] = min(count, max_examples)
    return values


def _bounds(name: str) -> tuple[float, float]:
    if name.startswith("accuracy"):
        return 0.0, 1.0
    if name == FEEDBACK_VERSION:
        return 1, MAX_VERSION
    return (0.0 if name in _TRAIN_METRICS else -_MAX_FIGURE), _MAX_FIGURE


def _short(names: Mapping[str, object]) -> str:
    return (", ".join(sorted(map(str, names))) or "nothing")[:300]
