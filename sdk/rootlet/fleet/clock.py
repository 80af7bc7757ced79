"""The server's time, as far as this device knows it."""

import time
from collections.abc import Callable


class ServerClock:
    """This device's clock, plus a correction once the server has refused it.

    Only what Flower itself dates is corrected (the signed timestamp and a reply's creation time);
    the device's own clock is never touched.

    Attributes:
        offset_s: Server's time minus this device's, in seconds; 0 until a correction.
        on_correction: Called with the new `offset_s` after each correction.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.offset_s = 0.0
        self.on_correction: Callable[[float], object] = lambda offset_s: None
        self._now = now

    def now(self) -> float:
        """Return the server's time, in seconds since the epoch."""
        return self._now() + self.offset_s

    def correct(self, difference_s: float) -> None:
        """Move the correction by `difference_s` (server's time minus `now()`), in seconds."""
        self.offset_s += difference_s
        self.on_correction(self.offset_s)
