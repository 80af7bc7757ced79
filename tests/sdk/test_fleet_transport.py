"""The HTTP transport against real servers on 127.0.0.1."""

import base64
import datetime
import email.utils
import http.server
import ssl
import threading
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rootlet.errors import (
    AuthenticationError,
    ConnectionFailedError,
    FleetError,
    NodeStillActiveError,
    ProtocolError,
    RunEndedError,
    ServerBusyError,
    ServerRefusedError,
)
from rootlet.fleet.clock import ServerClock
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.endpoint import Endpoint
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.transport import HttpTransport, RetryPolicy

KEY = NodeKey.generate()
PATH = "/v1/fleet/pull-messages"


class Server(http.server.ThreadingHTTPServer):
    """Answers by a script: each item is (status, body), or a function of the handler."""

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.connections = list(script), [], 0
        self.date = None
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request(self, request, client_address):
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 0.3  # like uvicorn, the server closes idle connections

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        step = self.server.script.pop(0) if self.server.script else (200, b"ok")
        if callable(step):
            step(self)
            return
        self.reply(*step)

    def reply(self, status, body):
        self.send_response_only(status)
        self.send_header("date", self.server.date or email.utils.formatdate(usegmt=True))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*script):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def transport():
    """Make a transport to a server that sleeps no time; the sleeps are recorded."""
    made = []

    def make(server, **options):
        options = {"jitter": lambda: 1.0, "retry": RetryPolicy(timeout_s=2.0)} | options
        endpoint = Endpoint("127.0.0.1", server.server_address[1], tls=False)
        slept = []
        made.append(HttpTransport(endpoint, node_key=KEY, sleep=slept.append, **options))
        return made[-1], slept

    yield make
    for transport in made:
        transport.close()


def drop(handler):
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def test_a_post_is_signed_over_its_timestamp(serve, transport):
    server = serve()
    client, _ = transport(server)
    assert client.post(PATH, b"body") == b"ok"
    ((path, headers, body),) = server.requests
    assert (path, body) == (PATH, b"body")
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["content-type"] == headers["accept"] == "application/protobuf"
    public = serialization.load_pem_public_key(base64.b64decode(headers["flwr-public-key"]))
    stamp = headers["flwr-timestamp"]
    signature = base64.b64decode(headers["flwr-signature"])
    public.verify(signature, stamp.encode(), ec.ECDSA(hashes.SHA256()))
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(stamp)
    assert abs(age.total_seconds()) < 5
    assert (client.traffic.up, client.traffic.down) == (4, 2)


def test_a_connection_is_kept_and_reopened_when_the_server_closed_it(serve, transport):
    server = serve()
    client, slept = transport(server)
    for _ in range(3):
        client.post(PATH, b"")
    assert server.connections == 1
    time.sleep(0.6)
    assert client.post(PATH, b"") == b"ok"
    assert server.connections == 2
    assert slept == []  # not a failure: no back-off


def test_busy_and_broken_servers_are_retried_with_growing_waits(serve, transport):
    server = serve(drop, (503, b""), (429, b""), (500, b""))
    client, slept = transport(server)
    assert client.post(PATH, b"x") == b"ok"
    assert slept == [0.5, 1.0, 2.0, 4.0]
    assert [body for _, _, body in server.requests] == [b"x"] * 5


def test_waits_are_capped_and_jittered(serve, transport):
    server = serve(*[(503, b"")] * 8)
    client, slept = transport(
        server, jitter=lambda: 0.5, retry=RetryPolicy(attempts=8, base_s=1.0, cap_s=4.0)
    )
    with pytest.raises(ServerBusyError, match="503"):
        client.post(PATH, b"")
    assert slept == [0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert len(server.requests) == 8


def test_nobody_listening_is_retryable(serve, transport):
    server = serve()
    client, slept = transport(server, retry=RetryPolicy(attempts=2, timeout_s=0.5))
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionFailedError, match="ConnectionRefused") as caught:
        client.post(PATH, b"")
    assert caught.value.retryable
    assert len(slept) == 1


def test_a_silent_server_times_out(serve, transport):
    server = serve(lambda handler: time.sleep(1.0))
    client, _ = transport(server, retry=RetryPolicy(attempts=1, timeout_s=0.2))
    before = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="TimeoutError"):
        client.post(PATH, b"")
    assert time.monotonic() - before < 0.9


def test_a_silent_server_on_a_kept_connection_times_out(serve, transport):
    server = serve((200, b""), lambda handler: time.sleep(1.0))
    client, _ = transport(server, retry=RetryPolicy(attempts=1, timeout_s=0.2))
    client.post(PATH, b"")
    with pytest.raises(ConnectionFailedError, match="TimeoutError"):
        client.post(PATH, b"")


def endless(handler):
    """Announce a large answer; send until the client hangs up."""
    handler.send_response_only(200)
    handler.send_header("content-length", str(10**12))
    handler.end_headers()
    handler.close_connection = True
    for _ in range(64):
        handler.wfile.write(bytes(2**16))


def test_huge_answers_are_cut_off(serve, transport):
    client, _ = transport(serve(endless), max_response_bytes=1000)
    with pytest.raises(ProtocolError, match="larger than 1000"):
        client.post(PATH, b"")
    assert client.traffic.down == 1001


def test_half_an_answer_is_a_failed_connection(serve, transport):
    def cut(handler):
        handler.send_response_only(200)
        handler.send_header("content-length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    client, slept = transport(serve(cut))
    assert client.post(PATH, b"") == b"ok"
    assert len(slept) == 1


def test_an_answer_of_unknown_length_is_a_failed_connection(serve, transport):
    def unmeasured(handler):
        handler.send_response_only(200)
        handler.end_headers()
        handler.wfile.write(b"who knows whether this is all")
        handler.close_connection = True

    client, _ = transport(serve(unmeasured), retry=RetryPolicy(attempts=1))
    with pytest.raises(ConnectionFailedError, match="how long"):
        client.post(PATH, b"")


def test_chunked_answers_are_read(serve, transport):
    def chunked(handler):
        handler.send_response_only(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")

    client, _ = transport(serve(chunked))
    assert client.post(PATH, b"") == b"abc"
    assert client.post(PATH, b"") == b"ok"


def test_garbage_instead_of_http_is_a_failed_connection(serve, transport):
    def garbage(handler):
        handler.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        handler.close_connection = True

    client, _ = transport(serve(garbage), retry=RetryPolicy(attempts=1))
    with pytest.raises(ConnectionFailedError, match="BadStatusLine"):
        client.post(PATH, b"")


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (412, b'{"code": 2004, "detail": "no"}', NodeStillActiveError, "flwr supernode register"),
        (412, b'{"code": 2007, "detail": "finished"}', RunEndedError, "finished"),
        (403, b'{"code": 2001, "detail": "no"}', ServerRefusedError, "registered nodes"),
        (404, b"<html>" * 100, ServerRefusedError, "status 404, code 0"),
        (409, b'{"code": "x", "detail": []}', ServerRefusedError, "code 0"),
        (400, b"[" * 60_000, ServerRefusedError, "code 0"),
        (302, b"", ServerRefusedError, "302"),
    ],
)
def test_refusals_have_their_own_errors_and_are_not_retried(
    serve, transport, status, body, error, match
):
    server = serve((status, body))
    client, slept = transport(server)
    with pytest.raises(error, match=match):
        client.post(PATH, b"")
    assert len(server.requests) == 1
    assert slept == []


@pytest.mark.parametrize("offset_s", [4000.0, -4000.0])
def test_a_wrong_clock_is_corrected_once(serve, transport, offset_s):
    server = serve((401, b""))
    corrections = []
    clock = ServerClock(lambda: time.time() + offset_s)
    clock.on_correction = corrections.append
    client, _ = transport(server, clock=clock)
    assert client.post(PATH, b"") == b"ok"
    assert client.post(PATH, b"") == b"ok"
    assert len(corrections) == 1
    assert abs(corrections[0] + offset_s) < 3
    stamp = {k.lower(): v for k, v in server.requests[1][1].items()}["flwr-timestamp"]
    sent = datetime.datetime.fromisoformat(stamp).timestamp()
    assert abs(sent - time.time()) < 5


def test_a_refused_signature_with_a_right_clock_is_an_error(serve, transport):
    server = serve((401, b""), (401, b""))
    client, slept = transport(server)
    with pytest.raises(AuthenticationError, match="flwr supernode register and set the clock"):
        client.post(PATH, b"")
    assert len(server.requests) == 1
    assert slept == []


def test_a_401_with_an_absurd_date_changes_nothing(serve, transport):
    for date in (
        *("yesterday", "Mon, 99 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 10000 00:00:00 GMT"),
        *("Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 +2300"),
    ):
        server = serve((401, b""))
        server.date = date
        clock = ServerClock()
        client, _ = transport(server, clock=clock)
        with pytest.raises(AuthenticationError):
            client.post(PATH, b"")
        assert clock.offset_s == 0


def test_posts_from_several_threads_do_not_mix(serve, transport):
    server = serve()
    client, _ = transport(server)
    results = []

    def work(number):
        results.append(client.post(PATH, str(number).encode()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"ok"] * 8
    assert client.traffic.up == 8


# -- TLS and addresses -------------------------------------------------------------------------


def self_signed(folder, name):
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}-{key.private_numbers().private_value % 9999}.pem"
    pem = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, private, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def tls_server(serve, tmp_path):
    server = serve((200, b""))
    certificate = self_signed(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server, certificate


def test_tls_with_the_right_authority(tls_server):
    server, certificate = tls_server
    address = f"localhost:{server.server_address[1]}"
    with FleetConnection(address, root_certificate=certificate, node_key=KEY) as connection:
        connection.deactivate_node()
    assert server.requests


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_with_a_wrong_authority_or_name_is_refused(tls_server, tmp_path, host):
    server, certificate = tls_server
    root = self_signed(tmp_path, "localhost") if host == "localhost" else certificate
    address = f"{host}:{server.server_address[1]}"
    with (
        FleetConnection(address, root_certificate=root, node_key=KEY) as connection,
        pytest.raises(FleetError, match="certificate"),
    ):
        connection.activate_node()
    assert not server.requests  # nothing was said to the stranger
