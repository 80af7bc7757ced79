"""A federation's figures for TensorBoard: `rootlet serve --tensorboard DIR`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.events import Event, OnEvent, RoundFinished


@contextmanager
def tensorboard_log(folder: Path | None, on_event: OnEvent) -> Iterator[OnEvent]:
    """Write a scalar for each figure of each finished round while the body runs.

    Args:
        folder: Where to; None for nowhere.
        on_event: Hears of every event too.

    Yields:
        What the federation shall tell of its events.

    Raises:
        ServeConfigError: TensorBoard is not installed.
    """
    if folder is None:
        yield on_event
        return
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        raise ServeConfigError(
            f"--tensorboard needs the package tensorboard ({error}); run: "
            'pip install "rootlet[server,training]"'
        ) from None
    writer = SummaryWriter(str(folder))

    def hear(event: Event) -> None:
        if isinstance(event, RoundFinished):
            for name, value in figures(event).items():
                writer.add_scalar(name, value, event.round, walltime=event.at_s)
            writer.flush()
        on_event(event)

    try:
        yield hear
    finally:
        writer.close()


def figures(event: RoundFinished) -> dict[str, float]:
    """A round's figures by their names; those that no device sent are left out."""
    found = {f"devices/{name}": value for name, value in event.means.items()}
    found |= {f"server/{name}": value for name, value in (event.central or {}).items()}
    found |= {"round/seconds": event.seconds, "round/devices": float(event.devices)}
    if not event.protection:
        found["round/energy_estimated_j"] = event.energy_estimated_j
    return found
