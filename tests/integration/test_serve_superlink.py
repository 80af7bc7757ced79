"""The SuperLink that `rootlet serve` starts: who may do what, and how it fails."""

import http.client
import socket
import urllib.error
import urllib.request

import pytest

from rootlet.errors import AuthenticationError, FleetError
from rootlet.fleet.connection import FleetConnection
from rootlet_server.errors import SuperLinkError
from rootlet_server.federation.superlink import SuperLink, SuperLinkConfig

PROTOBUF = "application/protobuf"


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    with SuperLink(SuperLinkConfig(state_dir=tmp_path_factory.mktemp("superlink"))) as link:
        yield link


def post(link, path, body=b"", **headers):
    """Status and body of a plain request."""
    connection = http.client.HTTPConnection(link.address)
    connection.request("POST", path, body, {"content-type": PROTOBUF, **headers})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


@pytest.mark.parametrize("call", ["pull-messages", "pull-object", "push-object"])
def test_the_fast_lane_refuses_in_flowers_own_words(link, call):
    status, content = post(link, f"/v1/fleet/{call}")
    assert status == 401
    assert content == b'{"detail":"Invalid SuperNode authentication"}'


@pytest.mark.parametrize("call", ["pull-object", "push-object"])
def test_a_task_without_a_token_is_refused_in_flowers_own_words(link, call):
    status, content = post(link, f"/v1/runtime/{call}")
    assert status == 401
    assert b'"code"' in content


def test_a_body_that_is_no_protobuf_is_refused_in_flowers_own_words(link):
    assert post(link, "/v1/fleet/pull-object", b"\xff\xff")[0] == 400
    assert post(link, "/v1/fleet/pull-object", **{"content-type": "text/plain"})[0] == 415


def network_address():
    """An address of this machine that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network address")
        return probe.getsockname()[0]


@pytest.mark.parametrize("trusted_proxies", ["*", None])
@pytest.mark.parametrize("claim", ["127.0.0.1", "::1"])
def test_a_network_caller_cannot_claim_to_be_local(tmp_path, monkeypatch, trusted_proxies, claim):
    if trusted_proxies:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted_proxies)  # as many containers do
    with SuperLink(SuperLinkConfig(state_dir=tmp_path)) as link:
        caller = http.client.HTTPConnection(link.address, source_address=(network_address(), 0))
        headers = {"content-type": PROTOBUF, "x-forwarded-for": claim}
        caller.request("POST", "/v1/control/list-runs", b"", headers)
        assert caller.getresponse().status == 403
        caller.close()


def test_a_key_cannot_speak_for_another_node(link):
    one, other = (FleetConnection(f"http://{link.address}") for _ in range(2))
    one.activate()
    other.node_id = one.node_id
    with pytest.raises(AuthenticationError):
        other.pull_messages()
    assert one.pull_messages() is None
    one.deactivate()
    one.close()
    other.close()


def test_an_unknown_object_is_not_found(link):
    connection = FleetConnection(f"http://{link.address}")
    connection.activate()
    with pytest.raises(FleetError):
        connection.pull_object(run_id=1, object_id="0" * 64)
    connection.deactivate()
    connection.close()


def test_nobody_takes_a_task_without_the_secret(link):
    status, _ = post(link, "/v1/runtime/acquire-task")
    assert status in (401, 403)


def test_a_taken_port_is_told_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = SuperLinkConfig(state_dir=tmp_path, port=port)
        with pytest.raises(SuperLinkError, match=f"127.0.0.1:{port}: Address already") as refused:
            SuperLink(config)
    assert "\n" not in str(refused.value)


def test_a_superlink_that_does_not_answer_in_time_is_stopped(tmp_path):
    config = SuperLinkConfig(state_dir=tmp_path, start_timeout_s=0.01)
    link = SuperLink(config)
    with pytest.raises(SuperLinkError, match=r"did not answer within 0\.01 s"):
        link.__enter__()
    assert not link.running
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{link.address}/health", timeout=1)


def test_a_stopped_superlink_is_gone(tmp_path):
    with SuperLink(SuperLinkConfig(state_dir=tmp_path)) as link:
        assert link.running
    assert not link.running
