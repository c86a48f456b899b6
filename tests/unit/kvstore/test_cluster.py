"""The cluster file: strict, one line per mistake, addresses that never collide."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from kvstore.cluster import (
    ClusterConfig,
    Proxy,
    Section,
    addresses,
    admin_address,
    admin_socket,
    dram_feed,
    load,
    parse,
    parse_worker_name,
    tcp_ports,
    worker_name,
)
from kvstore.errors import ConfigError
from kvstore.messages import Role

RUN_DIR = Path("/run/kvferry")


def test_nothing_is_a_whole_configuration() -> None:
    assert parse("") == ClusterConfig()
    assert ClusterConfig().proxy.port == 8000


def test_what_is_written_is_what_is_read() -> None:
    config = parse(
        """
        run_dir = "/run/kvferry"
        [model]
        path = "/models/m"
        block_size = 32
        [network]
        kind = "tcp"
        [decode]
        count = 3
        hosts = ["a", "b"]
        [[tenants]]
        name = "acme"
        keys_sha256 = ["%s"]
        epoch = 2
        """
        % ("0a" * 32)
    )
    assert (config.model.path, config.model.block_size) == ("/models/m", 32)
    assert config.workers("decode").hosts == ("a", "b")
    assert config.workers("prefill").count == 1
    assert config.tenants[0].epoch == 2


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ports = 1", "ports"),
        ("[model]\nsize = 1", "size"),
        ("[proxy]\nport = 70000", "proxy.port"),
        ("[proxy]\nport = '8000'", "proxy.port"),
        ("[proxy]\nport = true", "proxy.port"),
        ("[prefill]\ncount = 0", "prefill.count"),
        ("[prefill]\nkv_gib = 0", "prefill.kv_gib"),
        ("[network]\nkind = 'udp'", "network.kind"),
        ("[dram]\nenabled = 1", "dram.enabled"),
        ("[ship]\nlease_seconds = -1", "ship.lease_seconds"),
        ("[ship]\nlease_seconds = 1e9", "ship.lease_seconds"),
        ("[[tenants]]\nname = 'acme'", "keys_sha256"),
        ("[[tenants]]\nname = 'a b'\nkeys_sha256 = []", "tenants[0].name"),
        ("[[tenants]]\nname = 'a'\nkeys_sha256 = ['secret']", "keys_sha256[0]"),
        ("model = 'm'", "model"),
        ("[model", "TOML"),
        ("a = 1\na = 2", "TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(text: str, names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "cluster.toml")
    message = str(caught.value)
    assert message.startswith("cluster.toml")
    assert names in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)
    (tmp_path / "c.toml").write_text("[proxy]\nport = 1234\n")
    assert load(tmp_path / "c.toml").proxy.port == 1234


def test_a_file_that_is_no_text_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"c\.toml"):
        load(tmp_path / "c.toml")


def sections(kind: type[Section]) -> set[type[Section]]:
    return {kind}.union(*(sections(child) for child in kind.__subclasses__()))


def test_every_section_is_frozen_and_strict() -> None:
    for section in sections(Section):
        assert section.__struct_config__.frozen
        assert section.__struct_config__.forbid_unknown_fields
    with pytest.raises(AttributeError):
        ClusterConfig().proxy.port = 1  # type: ignore[misc]


def test_worker_names_lead_back_to_workers() -> None:
    config = parse("[decode]\ncount = 2")
    for role in get_args(Role):
        for index in range(config.workers(role).count):
            assert parse_worker_name(config, worker_name(role, index)) == (role, index)
    for name in ("decode-2", "prefill-1", "decode", "decode-00", "proxy-0", ""):
        with pytest.raises(ConfigError, match="no worker"):
            parse_worker_name(config, name)


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_no_two_addresses_are_the_same(kind: str) -> None:
    config = parse(f"[network]\nkind = '{kind}'\n[prefill]\ncount = 5\n[decode]\ncount = 5")
    everything = [
        address
        for role in get_args(Role)
        for index in range(5)
        for address in msgspec.structs.astuple(addresses(config, RUN_DIR, role, index))
    ]
    assert len(set(everything)) == len(everything)


def test_addresses_follow_the_network() -> None:
    ipc = addresses(parse(""), RUN_DIR, "prefill", 0)
    assert ipc.ship == "auto:///run/kvferry/prefill-0.ship"
    assert ipc.http == "unix:/run/kvferry/prefill-0.http"
    config = parse("[network]\nkind='tcp'\n[decode]\ncount=3\nhosts=['a','b']\nfirst_port=7200")
    tcp = addresses(config, RUN_DIR, "decode", 2)
    assert (tcp.http, tcp.feed) == ("http://a:7208", "zmq+tcp://a:7210")
    assert tcp.ship == "auto://a:7209"
    sent = parse("[ship]\ntransport='zmq'")
    assert addresses(sent, RUN_DIR, "prefill", 0).ship.startswith("zmq+ipc:///")
    joined = parse("[ship]\ntransport='nccl'\n[network]\nkind='tcp'")
    assert addresses(joined, RUN_DIR, "prefill", 0).ship == "nccl://127.0.0.1:7101"
    for private in (tcp.events, tcp.gate, tcp.abandon):
        assert private.startswith("ipc:///run/kvferry/decode-2.")


def test_only_prefill_workers_hear_of_dram() -> None:
    assert dram_feed(parse(""), RUN_DIR, "prefill") == f"zmq+ipc://{RUN_DIR}/dram.feed"
    assert dram_feed(parse(""), RUN_DIR, "decode") == ""
    assert dram_feed(parse("[dram]\nenabled = false"), RUN_DIR, "prefill") == ""


def test_memory_of_another_host_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"shm.*same host.*choose 'auto'"):
        parse("[ship]\ntransport='shm'\n[network]\nkind='tcp'")


def test_every_port_a_worker_takes_is_known() -> None:
    config = parse("[network]\nkind='tcp'\n[decode]\ncount=2\nranks=2\nfirst_port=7200")
    assert tcp_ports(config, "decode", 1) == [7208, 7210, 7209, 7213]
    plain = parse("[network]\nkind='tcp'\n[ship]\nbulk='authenticated'")
    assert tcp_ports(plain, "prefill", 0) == [7100, 7102, 7101, 7103]


def test_clients_and_operators_have_a_port_each() -> None:
    same = 'host = "10.0.0.5"\nport = 8000\nadmin_host = "127.0.0.1"\nadmin_port = '
    with pytest.raises(ConfigError, match="admin_port"):
        parse(f"[proxy]\n{same}8000\n")
    assert parse(f"[proxy]\n{same}8001\n").proxy.admin_port == 8001


def test_operators_are_let_in_by_the_socket_of_this_host_or_else_by_the_port(
    tmp_path: Path,
) -> None:
    only_here = ClusterConfig(proxy=Proxy(port=9))
    anywhere = ClusterConfig(proxy=Proxy(port=9, admin_host="::1", admin_port=7))
    socket = f"unix:{tmp_path}/proxy.9.admin"
    assert admin_address(only_here, tmp_path) == socket
    assert admin_address(anywhere, tmp_path) == "http://[::1]:7"
    admin_socket(anywhere, tmp_path).touch()
    assert admin_address(anywhere, tmp_path) == socket
