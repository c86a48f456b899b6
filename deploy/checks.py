"""What would go wrong, found out before anything is started. Each says what to change."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

from kvstore.cluster import ClusterConfig, tcp_ports
from kvstore.errors import ConfigError
from kvstore.messages import ROLES
from kvstore.slices import slices_of_rank

GIB = 1 << 30
ENGINE_GIB = 4.2
"""Host memory of one CPU engine without weights and KV: API server, engine core, worker."""
WEIGHT_COPIES = 2.0
"""The weights as they are loaded and as the CPU's kernels want them."""
RANK_GIB = 1.5
"""What each further rank of an engine takes besides its share of weights and KV."""
GPU_ENGINE_GIB = 6.0
"""Host memory of one engine whose weights and KV lie on a GPU."""

_CGROUP = Path("/sys/fs/cgroup")
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


def require_free(host: str, port: int, flag: str) -> None:
    """Raises ConfigError naming the port and the ``flag`` that changes it, if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"port {port} is in use: choose another with {flag}") from None
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def require_ports(config: ClusterConfig) -> None:
    """Raises ConfigError for the first TCP port of this cluster that is taken."""
    require_free(config.proxy.host, config.proxy.port, "--port (or proxy.port)")
    if config.dram.enabled:
        require_dram_ports(config)
    if config.network.kind == "tcp":
        for role in ROLES:
            section = config.workers(role)
            for index in range(section.count):
                host = section.hosts[index % len(section.hosts)]
                for port in tcp_ports(config, role, index):
                    require_free(host, port, f"{role}.first_port in the configuration")


def require_dram_ports(config: ClusterConfig) -> None:
    """Raises ConfigError when another program, or another tier, has the DRAM tier's ports."""
    require_free("127.0.0.1", config.dram.port, "dram.port in the configuration")
    require_free("127.0.0.1", config.dram.http_port, "dram.http_port in the configuration")


def require_local(config: ClusterConfig) -> None:
    """Raises ConfigError if the file places workers on other machines."""
    hosts = {*config.prefill.hosts, *config.decode.hosts} if config.network.kind == "tcp" else set()
    if elsewhere := sorted(hosts - _LOCAL):
        raise ConfigError(
            f"kvferry up runs everything on this machine, but hosts names {', '.join(elsewhere)}: "
            "start the parts with kvferry prefill, decode, dram and proxy"
        )


def needed_gib(config: ClusterConfig, on_gpu: bool, weight_bytes: int) -> float:
    """Host memory this cluster needs on one machine, GiB."""
    widened = 2.0 if config.model.dtype == "float32" else 1.0
    weights = WEIGHT_COPIES * widened * weight_bytes / GIB
    each = {
        role: (GPU_ENGINE_GIB if on_gpu else ENGINE_GIB + weights + config.workers(role).kv_gib)
        + RANK_GIB * (config.workers(role).ranks - 1)
        for role in ROLES
    }
    engines = sum(each[role] * config.workers(role).count for role in ROLES)
    return engines + (config.dram.gib if config.dram.enabled else 0.0)


def require_memory(config: ClusterConfig, on_gpu: bool, weight_bytes: int) -> None:
    """Raises ConfigError when this machine cannot hold the cluster; says how much it takes."""
    needed, available = needed_gib(config, on_gpu, weight_bytes), available_bytes() / GIB
    if needed > available:
        raise ConfigError(
            f"too little memory: {config.prefill.count} prefill and {config.decode.count} decode "
            f"workers need about {needed:.1f} GiB, {available:.1f} GiB are available: "
            "lower kv_gib, dram.gib or the number of workers"
        )


def require_heads(config: ClusterConfig, kv_heads: int) -> None:
    """Raises ConfigError when the ranks cannot share out the model's KV heads (0: not known)."""
    if kv_heads:
        for role in ROLES:
            slices_of_rank(kv_heads, config.slices, 0, config.workers(role).ranks)


def require_shared_memory(config: ClusterConfig, folder: Path) -> None:
    """Raises ConfigError when the DRAM tier does not fit into ``folder`` (/dev/shm)."""
    if not config.dram.enabled:
        return
    free = shutil.disk_usage(folder).free / GIB
    if free < config.dram.gib:
        raise ConfigError(
            f"{folder} has {free:.1f} GiB free, the DRAM tier needs {config.dram.gib:g} GiB: "
            "lower dram.gib or enlarge it (mount -o remount,size=…)"
        )


def available_bytes() -> int:
    """Memory this process and its children may still take: the machine's, or its group's limit."""
    return min([psutil.virtual_memory().available, *_group_limits()])


def _group_limits() -> Iterable[int]:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            texts = [(_CGROUP / name).read_text().strip() for name in (limit, used)]
        except OSError:
            continue
        if all(text.isdecimal() for text in texts):
            yield int(texts[0]) - int(texts[1])
