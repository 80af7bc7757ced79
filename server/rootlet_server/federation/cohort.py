"""Who is asked: the devices that are online and may be, and a secret draw of them."""

import math
import random
import time
from collections.abc import Collection

from flwr.serverapp import Grid

from rootlet_server.errors import NotEnoughDevicesError
from rootlet_server.federation.events import EventLog, Waiting
from rootlet_server.federation.plan import FederationPlan

_ONLINE_POLL_S = 0.2


class Cohorts:
    """Draws the devices of a plan.

    Args:
        grid: Flower's link to the devices.
        plan: How many, and which.
        log: Hears of waiting.
        rng: Draws; the operating system's by default, so that no device can foresee them.
    """

    def __init__(
        self, grid: Grid, plan: FederationPlan, log: EventLog, rng: random.Random | None
    ) -> None:
        self._grid = grid
        self._plan = plan
        self._log = log
        self._rng = rng or random.SystemRandom()

    def online(self) -> list[int]:
        """The nodes that are online and may be asked."""
        found = sorted(self._grid.get_node_ids())
        chosen = self._plan.nodes
        return found if chosen is None else [node for node in found if node in chosen]

    def wait(self) -> list[int]:
        """The nodes that are online, once they are enough.

        Raises:
            NotEnoughDevicesError: they were not in time.
        """
        plan = self._plan
        give_up = time.monotonic() + plan.wait_s
        shown = -1
        while len(online := self.online()) < plan.min_devices:
            if len(online) != shown:
                shown = len(online)
                self._log.write(Waiting(online=shown, needed=plan.min_devices))
            if time.monotonic() >= give_up:
                which = "" if plan.nodes is None else " that carry the selected tags"
                raise NotEnoughDevicesError(
                    f"{len(online)} devices{which} are online after {plan.wait_s:g} s, and a round "
                    f"needs {plan.min_devices}; start more devices, or lower --min-devices"
                )
            time.sleep(_ONLINE_POLL_S)
        return online

    def draw(self, busy: Collection[int]) -> list[int]:
        """A round's devices, once enough are online.

        Those that are still at an earlier round are asked only where the others do not suffice.

        Args:
            busy: Nodes that have not answered an earlier request.

        Raises:
            NotEnoughDevicesError: too few were online in time.
        """
        online, plan = self.wait(), self._plan
        idle = [node for node in online if node not in busy]
        if plan.cohort_size is None:
            return idle if len(idle) >= plan.min_devices else online
        size = min(len(online), math.ceil(plan.cohort_size * plan.over_select))
        chosen = self._rng.sample(idle, min(size, len(idle)))
        others = [node for node in online if node in busy]
        return sorted(chosen + self._rng.sample(others, size - len(chosen)))

    def pick(self, count: int, unwanted: Collection[int]) -> list[int]:
        """At most `count` of those that are online now and not unwanted."""
        found = [node for node in self.online() if node not in unwanted]
        return sorted(self._rng.sample(found, min(count, len(found))))
