"""A device of the demo: `rootlet device`, which ends when the demo does, however that ended."""

import sys

from rootlet_server.cli import main
from rootlet_server.federation.lifeline import watch_lifeline

if __name__ == "__main__":
    watch_lifeline()
    sys.exit(main())
