"""Flower's `flwr-serverapp`, as a child of `rootlet serve`.

It takes the arguments of `flwr-serverapp` but for the task's token, which it reads from the first
line of standard input, where no process listing shows it. So it can be started before there is a
run, and imports everything while the SuperLink starts.
"""

import sys
from functools import partial

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.cli import flwr_serverapp
from flwr.superlink.grid import http_grid

import rootlet_server.federation.app  # noqa: F401  loaded now, so that the run starts at once
from rootlet_server.federation.lifeline import read_line, watch_lifeline

# An answer is announced before its objects are there. Flower looks again after a second, which is
# most of a short round, and goes on looking for two hours if a device vanishes in its upload.
_PULL_BACKOFF_S = 0.05
_PULL_BACKOFF_CAP_S = 1.0
_PULL_TIMEOUT_S = 60.0


def main() -> None:
    """Wait for a token, then run its task."""
    patient = partial(
        pull_objects,
        initial_backoff=_PULL_BACKOFF_S,
        backoff_cap=_PULL_BACKOFF_CAP_S,
        max_time=_PULL_TIMEOUT_S,
    )
    setattr(http_grid, "pull_objects", patient)  # noqa: B010  the module does not export it
    token = read_line()
    if token is None:
        return
    watch_lifeline()
    sys.argv += ["--token", token]
    flwr_serverapp()


if __name__ == "__main__":
    sys.argv[0] = "flwr-serverapp"
    main()
