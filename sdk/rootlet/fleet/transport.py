"""The transport under the Fleet API: one POST over HTTP, with patience.

`Transport` is the seam: two methods, so that everything above it is tested without a network.
`HttpTransport` is the real one.

Every Fleet call may be repeated: the calls either have no effect, or name what they act on
(`FleetConnection` handles the answers that a repeated activation or upload gives). So one policy
covers them all: a request on a kept-alive connection that the server has closed meanwhile is
repeated at once; connection errors, 429 and 5xx are repeated after an exponential back-off with
full jitter.
"""

import base64
import contextlib
import email.utils
import http.client
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from rootlet.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionFailedError,
    FleetError,
    ProtocolError,
    ServerBusyError,
)
from rootlet.fleet.clock import ServerClock
from rootlet.fleet.endpoint import Endpoint
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.refusals import refusal

MEDIA_TYPE = "application/protobuf"
MAX_ERROR_BYTES = 64 * 1024
CLOCK_TOLERANCE_S = 4.0
"""Flower accepts a timestamp up to 5 s in its future: beyond this difference, a 401 may be due to
the clock."""


CLOCK_YEARS = range(2020, 2100)
"""Years that a server may correct this device's clock to: it signs what it takes for the time."""


class Transport(Protocol):
    """One request, one answer."""

    def post(self, path: str, body: bytes) -> bytes:
        """Send `body` to `path` (such as `/v1/fleet/pull-messages`) and return the answer's body.

        Raises:
            FleetError: No answer, or a refusal.
        """

    def close(self) -> None:
        """Close the connections; a later `post` opens new ones."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how long to try.

    The wait before attempt n is uniform in [0, min(cap_s, base_s * 2^(n-1))] (full jitter, so that
    a thousand devices do not come back at once).

    Attributes:
        attempts: Tries in all.
        base_s: Upper end of the first wait, in seconds.
        cap_s: Upper end of any wait, in seconds.
        timeout_s: Bound on each socket operation, in seconds.
    """

    attempts: int = 5
    base_s: float = 0.5
    cap_s: float = 8.0
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base_s < 0 or self.cap_s < 0 or self.timeout_s <= 0:
            raise ValueError(f"{self}: attempts >= 1, waits >= 0 and timeout_s > 0 are needed")


DEFAULT_RETRY = RetryPolicy()
_RANDOM = secrets.SystemRandom()


@dataclass
class Traffic:
    """Bytes of bodies moved so far, headers and TLS not counted."""

    up: int = 0
    down: int = 0


class HttpTransport:
    """Fleet calls over HTTP/1.1, signed with the node key; safe to use from several threads.

    Attributes:
        traffic: Bytes moved so far.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        node_key: NodeKey,
        root_certificate: Path | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        max_response_bytes: int = 8 * 2**20,
        clock: ServerClock | None = None,
        traffic: Traffic | None = None,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self.traffic = traffic or Traffic()
        self._clock = clock or ServerClock()
        self._sleep = sleep
        self._endpoint = endpoint
        self._node_key = node_key
        self._retry = retry
        self._max_response_bytes = max_response_bytes
        self._jitter = jitter
        self._tls = _trusting(root_certificate) if endpoint.tls else None
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def post(self, path: str, body: bytes) -> bytes:
        """Send `body` and return the answer's body; see `Transport.post`.

        Raises:
            ConnectionFailedError: No answer after all attempts.
            ServerBusyError: 429 or 5xx after all attempts.
            AuthenticationError: 401, also after correcting for a wrong clock.
            ProtocolError: An answer larger than the limit.
            FleetError: Any other refusal; see `rootlet.fleet.refusals`.
        """
        for attempt in range(1, self._retry.attempts + 1):
            try:
                return self._authenticated(path, body)
            except ConnectionFailedError:
                if attempt == self._retry.attempts:
                    raise
            bound_s = min(self._retry.cap_s, self._retry.base_s * 2 ** (attempt - 1))
            self._sleep(self._jitter() * bound_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _authenticated(self, path: str, body: bytes) -> bytes:
        """Send once; on a 401 that the clock explains, once more with the server's time."""
        status, date, content = self._exchange(path, body)
        skew_s = date - self._clock.now() if date is not None else 0.0
        if status == http.client.UNAUTHORIZED and abs(skew_s) > CLOCK_TOLERANCE_S:
            self._clock.correct(skew_s)
            status, date, content = self._exchange(path, body)
        if status == http.client.OK:
            return content
        if status == http.client.TOO_MANY_REQUESTS or status >= 500:
            raise ServerBusyError(
                f"{self._endpoint.host} answers {status} to {path}: {content[:200]!r}; try later"
            )
        if status == http.client.UNAUTHORIZED:
            raise AuthenticationError(
                f"{self._endpoint.host} refuses this node's signature on {path}: the node key is "
                "not the one of this node id, or the clock is wrong (it differs from the server's "
                f"by {skew_s + self._clock.offset_s:.0f} s); register the public key with flwr "
                "supernode register and set the clock"
            )
        raise refusal(path, status, content)

    def _exchange(self, path: str, body: bytes) -> tuple[int, float | None, bytes]:
        """Send once, and name what went wrong below HTTP."""
        try:
            return self._send_on_any(path, body)
        except ssl.SSLCertVerificationError as error:
            raise FleetError(
                f"{self._endpoint.host} shows a certificate that the root certificate does not "
                f"vouch for ({error.verify_message}); check root_certificate and the host name"
            ) from error
        except (http.client.HTTPException, OSError) as error:
            raise ConnectionFailedError(
                f"{self._endpoint.host}:{self._endpoint.port} does not answer {path}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _send_on_any(self, path: str, body: bytes) -> tuple[int, float | None, bytes]:
        """Send on an idle connection, or on a new one where there is none or it went stale."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                return self._send(connection, path, body)
            # The server closes connections that idle for some seconds: that is no failure.
        return self._send(self._connect(), path, body)

    def _connect(self) -> http.client.HTTPConnection:
        host, port, timeout_s = self._endpoint.host, self._endpoint.port, self._retry.timeout_s
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)

    def _send(
        self, connection: http.client.HTTPConnection, path: str, body: bytes
    ) -> tuple[int, float | None, bytes]:
        """Return status, the server's Date in seconds since the epoch, and the body.

        The connection is kept for the next call where that is possible, and closed otherwise.
        """
        keep = False
        try:
            connection.request("POST", path, body, self._headers())
            with connection.getresponse() as response:
                content = self._read(response, path)
                keep = not response.will_close
        finally:
            with self._lock:
                self.traffic.up += len(body)
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()
        return response.status, _seconds(response.getheader("date")), content

    def _read(self, response: http.client.HTTPResponse, path: str) -> bytes:
        """Return the body, whole and within the limit."""
        ok = response.status == http.client.OK
        limit = self._max_response_bytes if ok else MAX_ERROR_BYTES
        announced = response.length
        if announced is None and not response.chunked:
            raise http.client.HTTPException("an answer that does not say how long it is")
        content = response.read(limit + 1)
        with self._lock:
            self.traffic.down += len(content)
        if len(content) > limit:
            raise ProtocolError(f"the answer to {path} is larger than {limit} bytes")
        if announced is not None and len(content) < announced:
            raise http.client.IncompleteRead(content, announced - len(content))
        return content

    def _headers(self) -> dict[str, str]:
        timestamp = datetime.fromtimestamp(self._clock.now(), UTC).isoformat()
        signature = self._node_key.sign(timestamp.encode())
        return {
            "content-type": MEDIA_TYPE,
            "accept": MEDIA_TYPE,
            "flwr-public-key": base64.b64encode(self._node_key.public_pem).decode(),
            "flwr-timestamp": timestamp,
            "flwr-signature": base64.b64encode(signature).decode(),
        }


def _seconds(date: str | None) -> float | None:
    """The server's date, where it is one that a server can have."""
    try:
        found = email.utils.parsedate_to_datetime(date) if date else None
    except ValueError:
        return None
    return found.timestamp() if found and found.year in CLOCK_YEARS else None


def _trusting(root_certificate: Path | None) -> ssl.SSLContext:
    """A context that trusts one authority, or those of the system."""
    try:
        return ssl.create_default_context(cafile=root_certificate)
    except OSError as error:  # ssl names neither the file nor the remedy
        raise ConfigError(
            f"the root certificate {root_certificate} cannot be used "
            f"({error.strerror or error}); give the PEM file of the authority that signed the "
            "server's certificate"
        ) from error
