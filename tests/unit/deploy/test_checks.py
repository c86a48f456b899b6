"""Every mistake that can be seen beforehand is one line that says what to change."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy import checks
from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.errors import ConfigError

SMOLLM_BYTES = 269_000_000


@contextmanager
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_proxy_port_names_port_and_flag() -> None:
    with taken() as port:
        config = cluster.parse(f"[dram]\nenabled=false\n[proxy]\nport={port}")
        with pytest.raises(ConfigError, match=rf"port {port} is in use.*--port"):
            checks.require_ports(config)


def test_a_taken_dram_port_names_its_key() -> None:
    with taken() as port:
        config = cluster.parse(f"[proxy]\nport=0\n[dram]\nport={port}")
        with pytest.raises(ConfigError, match=rf"port {port} is in use.*dram\.port"):
            checks.require_ports(config)


@contextmanager
def taken_behind_two_free() -> Iterator[int]:
    """Below the ports that the kernel hands out, where the two stay free."""
    for first in range(20_000, 32_000, 3):
        with socket.socket() as listener, socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", first))
                two.bind(("127.0.0.1", first + 1))
                listener.bind(("127.0.0.1", first + 2))
            except OSError:
                continue
            one.close()
            two.close()
            listener.listen()
            yield first + 2
            return
    raise AssertionError("no three free ports in a row")


def test_a_taken_worker_port_names_its_key() -> None:
    with taken_behind_two_free() as port:
        text = "[network]\nkind='tcp'\n[proxy]\nport=0\n[dram]\nenabled=false\n[decode]\n"
        config = cluster.parse(text + f"first_port={port - 2}\n[prefill]\nfirst_port=0")
        with pytest.raises(ConfigError, match=rf"port {port} is in use.*decode\.first_port"):
            checks.require_ports(config)


def test_a_port_we_may_not_take_is_not_called_taken() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.1:8000"):
        checks.require_free("203.0.113.1", 8000, "--port")


def test_memory_needed_grows_with_workers_weights_kv_and_tier() -> None:
    small = checks.needed_gib(ClusterConfig(), False, SMOLLM_BYTES)
    assert 11 < small < 14
    more = cluster.parse("[prefill]\ncount=2\n[decode]\nfirst_port=7200\nkv_gib=3.0")
    assert checks.needed_gib(more, False, SMOLLM_BYTES) == pytest.approx(
        small + 2.0 + checks.ENGINE_GIB + 1.0 + 2 * SMOLLM_BYTES / checks.GIB
    )
    without = cluster.parse("[dram]\nenabled=false")
    assert checks.needed_gib(without, False, SMOLLM_BYTES) == pytest.approx(small - 1.0)


def test_too_little_memory_says_how_much_is_needed_and_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "available_bytes", lambda: 3 * checks.GIB)
    with pytest.raises(ConfigError, match=r"need about 1\d\.\d GiB, 3\.0 GiB are available"):
        checks.require_memory(ClusterConfig(), False, SMOLLM_BYTES)


def test_a_tier_larger_than_shared_memory_is_refused(tmp_path: Path) -> None:
    config = cluster.parse("[dram]\ngib = 1000000.0")
    with pytest.raises(ConfigError, match="the DRAM tier needs 1e\\+06 GiB"):
        checks.require_shared_memory(config, tmp_path)
    checks.require_shared_memory(cluster.parse("[dram]\nenabled=false"), tmp_path)


def test_up_refuses_workers_on_other_machines() -> None:
    elsewhere = cluster.parse("[network]\nkind='tcp'\n[prefill]\nhosts=['node1']")
    with pytest.raises(ConfigError, match="node1"):
        checks.require_local(elsewhere)
    checks.require_local(cluster.parse("[prefill]\nhosts=['node1']"))  # ipc has no hosts


def test_available_memory_respects_the_group_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(checks, "_CGROUP", tmp_path)
    assert checks.available_bytes() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.available_bytes() > 600_000


def test_ranks_that_cannot_share_the_heads_are_refused_before_anything_starts() -> None:
    config = cluster.parse("[prefill]\nranks=2\n[decode]\nranks=2")
    checks.require_heads(config, 2)
    checks.require_heads(config, 0)
    with pytest.raises(
        ConfigError, match=r"3 KV heads cannot be cut into 2 slices.*prefill\.ranks"
    ):
        checks.require_heads(config, 3)


def test_a_port_of_a_later_slice_names_its_key() -> None:
    with taken_behind_two_free() as port:
        text = "[network]\nkind='tcp'\n[proxy]\nport=0\n[dram]\nenabled=false\n[decode]\n"
        config = cluster.parse(text + f"first_port={port - 5}\nranks=2\n[prefill]\nfirst_port=0")
        with pytest.raises(ConfigError, match=rf"port {port} is in use.*decode\.first_port"):
            checks.require_ports(config)


def test_memory_needed_grows_with_ranks() -> None:
    one = checks.needed_gib(ClusterConfig(), False, SMOLLM_BYTES)
    two = checks.needed_gib(cluster.parse("[decode]\nranks=2"), False, SMOLLM_BYTES)
    assert two == pytest.approx(one + checks.RANK_GIB)
