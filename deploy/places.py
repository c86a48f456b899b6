"""What a cluster file leaves open, decided for this machine. The environment is read here only.

The result is a configuration like any other, with nothing left to decide; children are given that.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import tomli_w

from deploy import models
from kvstore.cluster import Adapter, ClusterConfig, Tenant
from kvstore.errors import ConfigError
from kvstore.machine import Machine, shared_out
from kvstore.messages import ROLES, Role

CPU_BLOCK_SIZE = 32
GPU_BLOCK_SIZE = 16
"""Tokens per block where the file does not say. vLLM's own default on CPU, 128, would make a
cache hit recompute up to 127 tokens."""

LONGEST_SOCKET_PATH = 107
_LONGEST_SOCKET_NAME = len("/prefill-999.events-replay")
KEY_PREFIX = "kvf-"

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Homes:
    """This user's folders: for sockets, for keys, for prepared models."""

    runtime: Path
    per_user: str
    state: Path
    cache: Path


def homes(env: Mapping[str, str], uid: int) -> Homes:
    """Where the environment (the XDG variables) puts things of user ``uid``."""
    home = Path(env.get("HOME", "/"))
    runtime = env.get("XDG_RUNTIME_DIR", "")
    # Sockets need short paths: without a runtime folder they go to the shortest there is.
    return Homes(
        runtime=Path(runtime) if runtime else Path("/tmp"),  # noqa: S108 - the folder is 0700
        per_user="kvferry" if runtime else f"kvferry-{uid}",
        state=Path(env.get("XDG_STATE_HOME") or home / ".local" / "state") / "kvferry",
        cache=Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "kvferry",
    )


def resolve(config: ClusterConfig, machine: Machine, where: Homes) -> ClusterConfig:
    """``config`` with folders, ports, block size and cores filled in; the model's path is as given.

    Raises ConfigError where the run folder's path is too long for sockets.
    """
    proxy = msgspec.structs.replace(config.proxy, port=config.proxy.port or free_port())
    dram = msgspec.structs.replace(
        config.dram,
        port=config.dram.port or free_port(),
        http_port=config.dram.http_port or free_port(),
    )
    run_dir = config.run_dir or str(where.runtime / f"{where.per_user}-{proxy.port}")
    room = LONGEST_SOCKET_PATH - _LONGEST_SOCKET_NAME
    if len(os.fsencode(run_dir)) > room:
        raise ConfigError(f"run_dir {run_dir} is too long for sockets: at most {room} bytes")
    model = msgspec.structs.replace(
        config.model,
        name=config.model.name or models.name_of(config.model.path),
        block_size=config.model.block_size
        or (CPU_BLOCK_SIZE if machine.device == "cpu" else GPU_BLOCK_SIZE),
        dtype=_dtype(config.model.dtype, machine),
        compile=_compile(config.model.compile, machine),
    )
    if config.dram.enabled and config.dram.chunk_tokens % model.block_size:
        raise ConfigError(
            f"dram.chunk_tokens {config.dram.chunk_tokens} is no multiple of "
            f"model.block_size {model.block_size}"
        )
    return msgspec.structs.replace(
        config,
        run_dir=run_dir,
        state_dir=config.state_dir or str(where.state),
        model=model,
        dram=dram,
        proxy=proxy,
        adapters=tuple(map(_placed, config.adapters)),
        **_bound(config, machine),
    )


def _placed(adapter: Adapter) -> Adapter:
    # Links are left: what they show to is looked at with every start of an engine.
    path = Path(adapter.path).expanduser().absolute()
    return msgspec.structs.replace(adapter, path=str(path))


def _compile(wanted: Compile, machine: Machine) -> Compile:
    """On CPU compiling wins a tenth of a decode step and costs a minute and more of every start."""
    if wanted != "auto":
        return wanted
    return "off" if machine.device == "cpu" else "on"


def _dtype(wanted: Dtype, machine: Machine) -> Dtype:
    return "float32" if wanted == "auto" and not machine.fast_bfloat16 else wanted


def _bound(config: ClusterConfig, machine: Machine) -> dict[str, Any]:
    """The roles' sections with cores; those of one host's workers overlap as little as can be."""
    if machine.device != "cpu":
        return {}
    workers: list[tuple[Role, str]] = []
    for role in ROLES:
        section = config.workers(role)
        hosts = section.hosts if config.network.kind == "tcp" else ("",)
        workers += [(role, hosts[i % len(hosts)]) for i in range(section.count)]
    cores: dict[Role, list[str]] = {"prefill": [], "decode": []}
    shares = {
        host: iter(
            shared_out(
                machine.cores,
                sum(config.workers(role).ranks for role, h in workers if h == host),
            )
        )
        for host in {host for _, host in workers}
    }
    for role, host in workers:
        ranks = [next(shares[host]) for _ in range(config.workers(role).ranks)]
        cores[role].append("|".join(",".join(map(str, share)) for share in ranks))
    return {
        role: msgspec.structs.replace(
            config.workers(role), cores=config.workers(role).cores or tuple(cores[role])
        )
        for role in cores
    }


def free_port() -> int:
    """A port nobody listens on at this moment, on this machine's own interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_key() -> tuple[str, str]:
    """A fresh API key and the SHA-256 under which a cluster file may know it."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def with_tenant(config: ClusterConfig, name: str, key_sha256: str) -> ClusterConfig:
    """``config`` with one more tenant."""
    tenant = Tenant(name=name, keys_sha256=(key_sha256,))
    return msgspec.structs.replace(config, tenants=(*config.tenants, tenant))


def to_toml(config: ClusterConfig) -> str:
    """``config`` as ``kvstore.cluster.parse`` reads it."""
    return tomli_w.dumps(msgspec.to_builtins(config))
