"""Flower's `flower-superlink`, as a child of `rootlet serve`.

It takes the arguments of `flower-superlink` and adds to it: the end of its parent ends it; over the
network only the Fleet API answers (`FleetGate`); the frequent requests go a short way (`FastLane`).
"""

import os
import sys

from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware

from rootlet_server.federation.fast_lane import FastLane
from rootlet_server.federation.gate import FleetGate
from rootlet_server.federation.lifeline import watch_lifeline

_PROXIES = "127.0.0.1,::1"


def main() -> None:
    """Run the SuperLink until it is asked to end."""
    watch_lifeline()
    # uvicorn takes the caller's address from X-Forwarded-For where these proxies sent it. Many
    # containers set "*": any caller could claim to be local, and the gate would believe it.
    os.environ["FORWARDED_ALLOW_IPS"] = _PROXIES
    extensions.get_middleware = lambda: (Middleware(FleetGate), Middleware(FastLane))
    flower_superlink()


if __name__ == "__main__":
    sys.argv[0] = "flower-superlink"
    main()
