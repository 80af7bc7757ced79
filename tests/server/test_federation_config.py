"""What `rootlet serve` refuses before it opens anything."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_server.errors import PublicAddressError, ServeConfigError
from rootlet_server.federation import serving
from rootlet_server.federation.address import is_loopback, join_host_port
from rootlet_server.federation.config import ServeConfig
from rootlet_server.federation.privacy import FederationPrivacy
from rootlet_server.federation.superlink import SuperLinkConfig
from rootlet_server.federation.tags import read_tags, select

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()


def config(**changes):
    values = {
        "bundle": Path("b.rootlet"),
        "trusted_keys": (KEY,),
        "signing_key": Path("k.pem"),
        "state_dir": Path("state"),
    }
    return ServeConfig(**values | changes)


def test_listens_on_loopback_without_tls_by_default():
    assert config().host == "127.0.0.1"
    assert config().tls == "off"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"min_devices": 0}, "min_devices is 0"),
        ({"cohort_size": 0}, "cohort_size is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"deadline_s": 0.0}, "deadline_s is 0"),
        ({"wait_s": float("inf")}, "wait_s is inf"),
        ({"max_examples": 0}, "max_examples is 0"),
        ({"port": 70000}, "port is 70000"),
        ({"tls": "maybe"}, "tls is 'maybe'"),
        ({"trusted_keys": ()}, "trusted_keys is empty"),
        ({"node_keys": Path("keys")}, "without TLS"),
        ({"strategy": "best"}, "strategy is 'best'; it is one of"),
        ({"strategy": "fedadam", "strategy_options": {"beta": 1}}, "no option 'beta'; it has eta"),
        ({"strategy": "krum"}, r"krum needs 5 answers a round, but min_devices is 2; .*--min-dev"),
        ({"strategy": "krum", "min_devices": 9, "cohort_size": 4}, "cohort_size is 4"),
        ({"strategy": "fedbuff", "strategy_options": {"buffer_size": 3}}, "fedbuff needs 3"),
        ({"strategy": "fedbuff", "cohort_size": 2, "over_select": 2}, "waits for nobody"),
        ({"compression": "gzip"}, "compression is 'gzip'; it must be one of int8, int16, top-k"),
        ({"compression": "top-k"}, "top_k is 0.0; it must be above 0"),
        ({"top_k": 0.1}, "goes with --compression top-k"),
        ({"strategy_options": {"eta": 0.1}}, "strategy_options has eta, of no strategy; name it"),
        ({"min_replies": 0}, "min_replies is 0"),
        ({"min_replies": 3}, "min_replies is 3, but min_devices is 2"),
        ({"over_select": 0.5, "cohort_size": 2}, r"over_select is 0.5; it must lie in 1\.\.10"),
        ({"over_select": 1.3}, "without cohort_size asks all"),
        ({"select": ("camera",)}, "--tags FILE --node-keys DIR"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(changes, name):
    with pytest.raises(ServeConfigError, match=name):
        config(**changes)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "2001:db8::1", "example.org"])  # noqa: S104
@pytest.mark.parametrize(
    ("guards", "missing"),
    [
        ({}, "without TLS .* and node authentication"),
        ({"tls": "auto"}, "without node authentication"),
    ],
)
def test_a_public_address_without_both_guards_is_refused(host, guards, missing):
    with pytest.raises(PublicAddressError, match=missing):
        config(host=host, **guards)


def test_a_superlink_of_its_own_is_held_to_the_same_rule(tmp_path):
    with pytest.raises(PublicAddressError, match=r"192\.168\.1\.7"):
        SuperLinkConfig(state_dir=tmp_path, host="192.168.1.7")


def test_a_guarded_public_address_is_accepted():
    assert config(host="192.168.1.7", tls="auto", node_keys=Path("keys")).host == "192.168.1.7"


def test_every_interface_needs_a_name_for_the_certificate():
    guarded = {"host": "0.0.0.0", "tls": "auto", "node_keys": Path("keys")}  # noqa: S104
    with pytest.raises(ServeConfigError, match="--tls-name"):
        config(**guarded)
    assert config(**guarded, tls_names=("edge.example.org",)).tls_names == ("edge.example.org",)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("10.0.0.1", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback(host, local):
    assert is_loopback(host) is local


def test_an_ipv6_host_is_joined_in_brackets():
    assert join_host_port("::1", 80) == "[::1]:80"
    assert join_host_port("127.0.0.1", 80) == "127.0.0.1:80"


TAGS = """
camera = ["front.pub", "yard.pub"]
night = ["yard.pub"]
nobody = []
"""


def test_tags_belong_to_key_files_and_all_that_are_wanted_must_be_carried(tmp_path):
    path = tmp_path / "tags.toml"
    path.write_text(TAGS)
    tags = read_tags(path, ["front.pub", "yard.pub", "door.pub"])
    assert select(tags, ["camera"]) == {"front.pub", "yard.pub"}
    assert select(tags, ["camera", "night"]) == {"yard.pub"}
    for unknown in ("nobody", "indoors"):
        with pytest.raises(ServeConfigError, match=f"select is '{unknown}'.*camera, night"):
            select(tags, ["camera", unknown])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("camera = [", "not a file of tags"),
        ("camera = 'front.pub'", "must be a list of key files"),
        ("camera = ['garden.pub']", "'garden.pub', which is not among the device keys: front.pub"),
    ],
)
def test_a_file_of_tags_that_cannot_be_used_is_refused(tmp_path, text, reason):
    path = tmp_path / "tags.toml"
    path.write_text(text)
    with pytest.raises(ServeConfigError, match=reason):
        read_tags(path, ["front.pub"])
    with pytest.raises(ServeConfigError, match="not a file of tags"):
        read_tags(tmp_path / "absent.toml", [])


def tensors(*names):
    return SimpleNamespace(adapter=[SimpleNamespace(name=name) for name in names])


def test_a_bundle_whose_a_learns_is_averaged_by_its_products():
    frozen, trained = tensors("m.lora_B", "head.bias"), tensors("m.lora_A", "m.lora_B")
    assert serving._default_strategy(config(), frozen) == "fedavg"
    assert serving._default_strategy(config(), trained) == "loramean"
    privacy = FederationPrivacy(unit="device", max_norm=1.0, noise_multiplier=4.0, epsilon=2.0)
    protected = config(privacy=privacy)
    assert serving._default_strategy(protected, trained) == "fedavg"  # it sees no single update
