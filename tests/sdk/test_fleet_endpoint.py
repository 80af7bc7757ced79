"""Addresses, and the bounds on a connection's settings."""

import pytest

from rootlet.errors import ConfigError, InsecureAddressError
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.endpoint import Endpoint
from rootlet.fleet.transport import RetryPolicy


@pytest.mark.parametrize(
    ("address", "with_certificate", "expected"),
    [
        ("127.0.0.1:8000", False, ("127.0.0.1", 8000, False)),
        ("127.0.0.1:8000", True, ("127.0.0.1", 8000, True)),
        ("localhost:1", False, ("localhost", 1, False)),
        ("[::1]:8000", False, ("::1", 8000, False)),
        ("http://127.9.9.9:8000", False, ("127.9.9.9", 8000, False)),
        ("https://fl.example.org:443", False, ("fl.example.org", 443, True)),
        ("fl.example.org:443", False, ("fl.example.org", 443, True)),
    ],
)
def test_addresses(address, with_certificate, expected):
    endpoint = Endpoint.parse(address, with_certificate=with_certificate)
    assert (endpoint.host, endpoint.port, endpoint.tls) == expected


@pytest.mark.parametrize(
    "address",
    ["http://fl.example.org:80", "http://192.168.1.5:8000", "http://127.0.0.1.evil.org:1"],
)
def test_plain_http_stays_on_this_machine(address):
    with pytest.raises(InsecureAddressError, match="https"):
        Endpoint.parse(address, with_certificate=False)


def test_plain_http_with_a_certificate_is_a_contradiction():
    with pytest.raises(InsecureAddressError, match="although a root certificate"):
        Endpoint.parse("http://127.0.0.1:1", with_certificate=True)


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "ftp://127.0.0.1:1", "127.0.0.1:1/path", ":80", "h:99999", "h:x", "h:0"],
)
def test_nonsense_addresses_are_refused_by_name(address):
    with pytest.raises(ValueError, match=f"address {address!r}"):
        Endpoint.parse(address, with_certificate=False)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_root_certificate_that_is_none_is_refused_by_name(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"root certificate .*ca\.pem"):
        FleetConnection("fl.example.org:443", root_certificate=path)


@pytest.mark.parametrize("interval_s", [0.0, 9.9, 1801.0])
def test_heartbeat_intervals_outside_flowers_bounds_are_refused(interval_s):
    with pytest.raises(ValueError, match="10 to 1800"):
        FleetConnection("127.0.0.1:1", heartbeat_interval_s=interval_s)


@pytest.mark.parametrize("bad", [{"attempts": 0}, {"base_s": -1.0}, {"timeout_s": 0.0}])
def test_impossible_retry_policies_are_refused(bad):
    with pytest.raises(ValueError, match="attempts >= 1"):
        RetryPolicy(**bad)
