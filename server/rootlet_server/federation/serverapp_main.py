"""Flower's `flwr-serverapp`, as a child of `rootlet serve`.

It takes the arguments of `flwr-serverapp` but for the task's token, which it reads from the first
line of standard input, where no process listing shows it. So it can be started before there is a
run, and imports everything while the SuperLink starts.
"""

import sys

from flwr.superlink.cli import flwr_serverapp
from flwr.superlink.grid import http_grid

import rootlet_server.federation.app  # noqa: F401  loaded now, so that the run starts at once
from rootlet_server.federation.inflation import inflated_message, pull_and_inflate
from rootlet_server.federation.lifeline import read_line, watch_lifeline


def main() -> None:
    """Wait for a token, then run its task."""
    # B010: the module does not export them
    setattr(http_grid, "pull_objects", pull_and_inflate)  # noqa: B010
    setattr(http_grid, "inflate_object_from_contents", inflated_message)  # noqa: B010
    token = read_line()
    if token is None:
        return
    watch_lifeline()
    sys.argv += ["--token", token]
    flwr_serverapp()


if __name__ == "__main__":
    sys.argv[0] = "flwr-serverapp"
    main()
