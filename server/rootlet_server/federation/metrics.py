"""The federation's figures for Prometheus, at `http://127.0.0.1:PORT/metrics`.

The endpoint has no authentication of its own, so it listens on this machine only: let a Prometheus
beside it scrape it, or put a proxy that asks for a password in front of it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.status import FederationStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from rootlet_server.federation.events import OnEvent

HOST = "127.0.0.1"


class StatusCollector(Collector):
    """Gives a status to Prometheus at every scrape.

    Args:
        status: Kept up to date by somebody else.
    """

    def __init__(self, status: FederationStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every figure, by the names of `docs/server.md`."""
        s = self._status
        gauges = (
            ("round", "Last finished round.", s.round),
            ("devices_online", "Devices at the last look.", s.online),
            ("devices_needed", "Devices that a round needs.", s.needed),
            ("round_devices_asked", "Devices that the last round asked.", s.asked),
            ("round_devices_answered", "Devices whose updates the last round has.", s.answered),
            ("round_seconds", "Duration of the last finished round.", s.round_s),
            ("bundle_version", "Version of the published bundle; 0 before.", s.version),
            ("training", "1 while a cohort trains.", float(s.state == "training")),
            ("failed", "1 where the run ended early.", float(s.state == "failed")),
            ("privacy_epsilon", "Spent by private rounds; 0 for none.", s.epsilon or 0.0),
            ("seconds_since_event", "Age of the last event.",
             time.time() - s.last_event_s if s.last_event_s else 0.0),
        )  # fmt: skip
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"rootlet_{name}", text, value=value)
        counters = (
            ("replies_refused", "Answers left out.", s.refused),
            ("restarts", "Starts of the server's processes after one of them died.", s.restarts),
            ("bytes_down", "Bytes that devices received.", s.bytes_down),
            ("bytes_up", "Bytes that devices sent.", s.bytes_up),
            ("energy_estimated_joules", "Sum of the devices' estimates.", s.energy_estimated_j),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"rootlet_{name}", text, value=value)
        metrics = GaugeMetricFamily(
            "rootlet_metric",
            "Metrics of the last finished round; place: devices, or the server's own data.",
            labels=["name", "place"],
        )
        for place, values in (("devices", s.means), ("server", s.central)):
            for name, value in values.items():
                metrics.add_metric([name, place], value)
        yield metrics


@contextmanager
def metrics_endpoint(port: int | None, on_event: OnEvent) -> Iterator[OnEvent]:
    """Serve the figures while the body runs.

    Args:
        port: To listen on; None for no endpoint.
        on_event: Hears of every event too.

    Yields:
        What the federation shall tell of its events.

    Raises:
        ServeConfigError: The port cannot be used.
    """
    if port is None:
        yield on_event
        return
    status, registry = FederationStatus(), CollectorRegistry()
    registry.register(StatusCollector(status))
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except (OSError, OverflowError) as error:
        raise ServeConfigError(
            f"--metrics-port {port}: {HOST} cannot listen on it ({error}); give a free one"
        ) from error

    def hear(event: object) -> None:
        status.hear(event)  # type: ignore[arg-type]
        on_event(event)  # type: ignore[arg-type]

    try:
        yield hear
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
