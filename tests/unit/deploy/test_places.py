"""What a cluster file leaves open is decided completely and without surprises."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import places
from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.errors import ConfigError
from kvstore.machine import Machine, has_bfloat16, shared_out

TWO_CORES = Machine("cpu", (0, 1))
HOMES = places.homes({"HOME": "/home/me"}, 1000)


def parsed(text: str) -> ClusterConfig:
    return cluster.parse(text)


def test_two_workers_on_two_cores_get_one_each() -> None:
    config = places.resolve(ClusterConfig(), TWO_CORES, HOMES)
    assert config.prefill.cores == ("0",)
    assert config.decode.cores == ("1",)


def test_every_rank_has_cores_of_its_own() -> None:
    machine = Machine("cpu", tuple(range(6)))
    config = places.resolve(parsed("[prefill]\nranks = 2"), machine, HOMES)
    assert config.prefill.cores == ("0,1|2,3",)
    assert config.decode.cores == ("4,5",)


def test_cores_in_the_file_are_kept() -> None:
    config = places.resolve(parsed("[decode]\ncores = ['4-7']"), TWO_CORES, HOMES)
    assert config.decode.cores == ("4-7",)


def test_each_host_shares_out_its_own_cores() -> None:
    text = "[network]\nkind='tcp'\n[prefill]\nhosts=['a']\n[decode]\nfirst_port=7200\nhosts=['b']"
    config = places.resolve(parsed(text), TWO_CORES, HOMES)
    assert config.prefill.cores == config.decode.cores == ("0,1",)


def test_gpu_workers_are_not_bound_to_cores() -> None:
    config = places.resolve(ClusterConfig(), Machine("cuda", (0, 1), ("0",)), HOMES)
    assert config.prefill.cores == ()
    assert config.model.block_size == places.GPU_BLOCK_SIZE


@given(
    cores=st.lists(st.integers(0, 127), min_size=1, max_size=32, unique=True).map(tuple),
    shares=st.integers(1, 40),
)
def test_shares_are_even_and_disjoint_while_cores_last(cores: tuple[int, ...], shares: int) -> None:
    parts = shared_out(cores, shares)
    assert len(parts) == shares
    assert all(parts)
    if shares <= len(cores):
        assert sorted(core for part in parts for core in part) == sorted(cores)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_folders_follow_the_environment() -> None:
    where = places.homes({"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/7"}, 7)
    config = places.resolve(ClusterConfig(), TWO_CORES, where)
    assert config.run_dir == "/run/user/7/kvferry-8000"
    assert config.state_dir == "/h/.local/state/kvferry"
    assert places.resolve(ClusterConfig(), TWO_CORES, HOMES).run_dir == "/tmp/kvferry-1000-8000"
    assert places.homes({"XDG_CACHE_HOME": "/c"}, 7).cache == Path("/c/kvferry")


def test_a_run_folder_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long for sockets"):
        places.resolve(parsed(f"run_dir = '/{'x' * 100}'"), TWO_CORES, HOMES)


def test_every_socket_of_the_longest_run_folder_fits() -> None:
    room = places.LONGEST_SOCKET_PATH - len("/prefill-999.events-replay")
    config = parsed(f"run_dir = '/{'x' * (room - 1)}'\n[prefill]\ncount = 1000")
    config = places.resolve(config, TWO_CORES, HOMES)
    found = cluster.addresses(config, Path(config.run_dir), "prefill", 999)
    for address in (found.http, found.ship, found.feed, f"{found.events}-replay", found.abandon):
        path = address.partition(":")[2].removeprefix("//")
        assert len(path.encode()) <= places.LONGEST_SOCKET_PATH


def test_a_chunk_that_is_no_multiple_of_the_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple"):
        places.resolve(parsed("[dram]\nchunk_tokens = 100"), TWO_CORES, HOMES)


def test_port_zero_becomes_a_real_port() -> None:
    config = places.resolve(parsed("[proxy]\nport=0\n[dram]\nport=0"), TWO_CORES, HOMES)
    assert config.proxy.port
    assert config.dram.port
    assert config.run_dir.endswith(f"-{config.proxy.port}")


def test_auto_is_float32_only_where_bfloat16_is_slow() -> None:
    slow = Machine("cpu", (0,), fast_bfloat16=False)
    assert places.resolve(ClusterConfig(), slow, HOMES).model.dtype == "float32"
    assert places.resolve(ClusterConfig(), TWO_CORES, HOMES).model.dtype == "auto"
    chosen = parsed("[model]\ndtype = 'bfloat16'")
    assert places.resolve(chosen, slow, HOMES).model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("processor : 0\nflags\t\t: fpu avx avx2 f16c\n", False),
        ("flags : fpu avx2 avx512f avx512bw\n", True),
        ("Features : fp asimd bf16\n", True),
        ("", False),
    ],
)
def test_bfloat16_is_read_off_the_processor(cpuinfo: str, fast: bool) -> None:
    assert has_bfloat16(cpuinfo) is fast


def test_a_resolved_configuration_survives_its_file() -> None:
    key, digest = places.new_key()
    config = places.resolve(ClusterConfig(), TWO_CORES, HOMES)
    config = places.with_tenant(config, "local", digest)
    text = places.to_toml(config)
    assert cluster.parse(text) == config
    assert key not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text


def test_keys_are_never_the_same() -> None:
    assert places.new_key() != places.new_key()


def test_compiling_is_left_to_gpus_unless_asked_for() -> None:
    gpu = Machine("cuda", (0, 1), ("0",))
    assert places.resolve(ClusterConfig(), gpu, HOMES).model.compile == "on"
    assert places.resolve(ClusterConfig(), TWO_CORES, HOMES).model.compile == "off"
    asked = parsed("[model]\ncompile = 'on'")
    assert places.resolve(asked, TWO_CORES, HOMES).model.compile == "on"
