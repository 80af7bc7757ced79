"""Buffered rounds: devices train at all times, and every few answers make a version."""

import time
from collections import deque

from rootlet_server.federation.accepted import Accepted
from rootlet_server.federation.checkpoint import Adapter, RoundCheckpoint
from rootlet_server.federation.events import RoundStarted
from rootlet_server.federation.exchange import Answer, Exchange
from rootlet_server.federation.gathering import Gathered, Means
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.strategies import Buffering


class BufferedRounds:
    """FedBuff's side of the grid (Nguyen et al. 2022).

    `cohort_size` devices, or all, train at once. A device that comes free is asked again, with the
    newest version, and none twice for one version. An answer counts against the version that its
    device received; beyond `max_staleness` it is left out. What arrives after the buffer is full
    goes into the next one. A version ends with what it has, if that is `min_replies`, when the
    deadline has passed since it began. A restarted server asks anew: what was under way is lost,
    finished versions are not.
    """

    def __init__(self, means: Means, buffering: Buffering) -> None:
        self._means = means
        self._buffering = buffering
        self._versions: dict[int, Adapter] = {}
        self._arrived: deque[Answer] = deque()
        self._buffer: list[Accepted] = []

    def lifetime_s(self, plan: FederationPlan) -> float:
        """How long an answer is waited for: after that its device counts as free."""
        return plan.deadline_s

    def gather(self, exchange: Exchange, before: RoundCheckpoint) -> Gathered:
        """The answers of one full buffer."""
        plan, version = self._means.plan, before.round
        self._means.cohorts.wait()
        self._versions[version] = before.adapter
        oldest = version - self._buffering.max_staleness
        self._versions = {key: each for key, each in self._versions.items() if key >= oldest}
        asked = {item.node for item in self._buffer}  # kept where the version had too few
        start = news = time.monotonic()
        while True:
            self._refill(exchange, before, asked)
            found = exchange.arrived()
            self._arrived.extend(found)
            while self._arrived and len(self._buffer) < self._buffering.size:
                self._judge(self._arrived.popleft(), version)
            now = time.monotonic()
            news = now if found else news
            if len(self._buffer) >= self._buffering.size or now - start >= plan.deadline_s:
                break
            exchange.pause(now - news, most_s=plan.deadline_s - (now - start))
        accepted: list[Accepted] = []
        if len(self._buffer) >= min(plan.min_replies, self._buffering.size):
            accepted, self._buffer = self._buffer, []
        return Gathered.of(accepted, asked=len(asked), seconds=now - start)

    def _refill(self, exchange: Exchange, before: RoundCheckpoint, asked: set[int]) -> None:
        """Ask devices until as many train as shall; adds them to `asked`."""
        cohorts, busy = self._means.cohorts, exchange.busy
        online = set(cohorts.online())
        room = (self._means.plan.cohort_size or len(online)) - len(busy & online)
        nodes = cohorts.pick(room, busy | asked) if room > 0 else []
        if not nodes:
            return
        round_ = before.round + 1
        self._means.log.write(RoundStarted(round=round_, cohort=nodes))
        exchange.ask(round_, self._means.requests.train(round_, before.adapter, nodes))
        asked.update(nodes)

    def _judge(self, answer: Answer, version: int) -> None:
        """Takes an answer into the buffer, or tells why not."""
        received = answer.round - 1
        staleness, most = version - received, self._buffering.max_staleness
        if staleness > most:
            reason = f"it is {staleness} versions old; the strategy takes at most {most}"
            self._means.judge.refuse(answer, reason)
            return
        found = self._means.judge.trained(answer, self._versions[received], staleness=staleness)
        if found is not None:
            self._buffer.append(found)
