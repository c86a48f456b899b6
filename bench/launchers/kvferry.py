"""kvferry as a user starts it: one command, its defaults, asked through its proxy.

The two workers are reached directly only to read their counters and to make decode forget, which
no client of a real cluster can do.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import counters, processes
from bench.client import Body, Client, Endpoint, Timeline
from bench.counters import CacheCounters
from bench.errors import RequestFailed
from bench.launchers.engine import reset
from bench.launchers.system import MODEL_NAME, START_SECONDS, Setting
from bench.processes import Child, StartFailed
from kvstore.cluster import ClusterConfig, addresses, admin_socket, parse, worker_name
from kvstore.credentials import TOKEN_HEADER, load_or_create
from kvstore.messages import ROLES, Role
from kvstore.salts import OWNER_HEADER, Owner

_STOP_SECONDS = 40.0
_HEARD_SECONDS = 1.2
_NOBODY = Owner("0" * 16, 0).claim
"""Whose a call to a worker is that no proxy sends."""


@dataclass(frozen=True)
class Shape:
    """What a benchmark of kvferry alone may have otherwise: its ``tenants``, further ``settings``
    (TOML sections), and ``max_model_len``, 0 for the model's own. ``shares``: of caches, the floor
    and the limit of those tenants that have not the usual ones.
    """

    tenants: tuple[str, ...] = ("bench",)
    settings: str = ""
    max_model_len: int = 0
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Kvferry:
    """One prefill and one decode worker, the DRAM tier and the proxy, under ``kvferry up``."""

    name = "kvferry"

    def __init__(self, setting: Setting, client: Client, shape: Shape | None = None) -> None:
        self._setting = setting
        self._client = client
        self._shape = shape or Shape()
        keys = {tenant: secrets.token_urlsafe(24) for tenant in self._shape.tenants}
        folder = Path(tempfile.mkdtemp(prefix="kvferry-", dir=setting.scratch))
        self._run_dir, self._state_dir = folder / "run", folder / "state"
        for private in (self._run_dir, self._state_dir):
            private.mkdir(mode=0o700)
        self._file = folder / "cluster.toml"
        self._file.write_text(self._toml(keys), encoding="utf-8")
        self._config: ClusterConfig = parse(self._file.read_text(encoding="utf-8"))
        self._child: Child | None = None
        base = f"http://127.0.0.1:{self._config.proxy.port}"
        self._tenants = {
            tenant: Endpoint(base, {"authorization": f"Bearer {key}"})
            for tenant, key in keys.items()
        }
        self._proxy = self._tenants[self._shape.tenants[0]]
        self._workers: Mapping[str, Endpoint] = {}

    async def start(self) -> None:
        """See System."""
        command = [self._setting.python, "-m", "deploy.cli", "up", "--config", str(self._file)]
        environ = {
            **self._setting.environ,
            "HF_HUB_OFFLINE": "1",
            # Opens /reset_prefix_cache behind the workers' gate.
            "VLLM_SERVER_DEV_MODE": "1",
        }
        self._child = processes.launch(self.name, command, environ, self._setting.logs)
        try:
            await processes.until_ready(self._child, self._ready, START_SECONDS)
        except StartFailed:
            await self.stop()
            raise
        self._workers = {role: self._worker(role, self._token()) for role in ROLES}

    async def stop(self) -> None:
        """See System."""
        if self._child is not None:
            await processes.stop(self._child, _STOP_SECONDS)
            self._child = None

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        """See System."""
        return await self._client.stream(self._proxy, body, intended)

    async def complete(self, body: Body, lane: int = 0) -> Mapping[str, Any]:
        """See System."""
        return await self._client.post(self._proxy, "/v1/completions", body)

    async def forget(self) -> None:
        """See System."""
        decode = self._workers["decode"]
        await reset(self._client, decode)
        # An engine announces what it has lost with its next step, and the proxy steers by that.
        step = {"model": self._config.model.name, "prompt": [1], "max_tokens": 1}
        await self._client.post(decode, "/v1/completions", step)
        await asyncio.sleep(_HEARD_SECONDS)

    async def counters(self) -> Mapping[str, CacheCounters]:
        """See System."""
        return {
            role: counters.parse(await self._client.text(endpoint, "/metrics"))
            for role, endpoint in self._workers.items()
        }

    def children(self) -> Sequence[Child]:
        """See System."""
        if self._child is None:
            raise StartFailed("kvferry is not running")
        return [self._child]

    def explained(self, tenant: str) -> Endpoint:
        """Where ``tenant`` asks, as an operator who is told why it is served as it is."""
        asks = self._tenants[tenant]
        return Endpoint(asks.base, {**asks.headers, **self._token()})

    def asks(self, tenant: str) -> Endpoint:
        """Where ``tenant`` asks."""
        return self._tenants[tenant]

    async def flush(self, tenant: str) -> Mapping[str, Any]:
        """All that is cached for ``tenant`` is gone, as an operator has it. Raises RequestFailed.

        What the proxy answered.
        """
        socket = admin_socket(self._config, self._run_dir)
        operator = Endpoint("http://operator", self._token(), socket)
        return await self._client.post(operator, f"/admin/tenants/{tenant}/flush")

    async def kill_prefill(self) -> list[str]:
        """SIGKILL the prefill engine's whole process group, as its worker has written it down."""
        record = self._run_dir / f"{worker_name('prefill', 0)}.group"
        group = int(record.read_text(encoding="ascii"))
        titles = [
            processes.label(member)
            for child in self.children()
            for member in child.family()
            if processes.group(member) == group
        ]
        os.killpg(group, signal.SIGKILL)
        return titles

    async def tier_locks(self) -> int:
        """Objects that LMCache holds locked for reading or writing."""
        lmcache = Endpoint(f"http://127.0.0.1:{self._config.dram.http_port}")
        return locks(await self._client.get(lmcache, "/status"))

    async def _ready(self) -> bool:
        try:
            counts = await self._client.get(self._proxy, "/ready")
        except RequestFailed:
            return False
        return bool(counts.get("prefill")) and bool(counts.get("decode"))

    def _token(self) -> dict[str, str]:
        return {TOKEN_HEADER: load_or_create(self._state_dir).http_token()}

    def _worker(self, role: Role, token: Mapping[str, str]) -> Endpoint:
        http = addresses(self._config, self._run_dir, role, 0).http
        return Endpoint.at(http, {**token, OWNER_HEADER: _NOBODY})

    def _shares(self, tenant: str) -> str:
        if tenant not in self._shape.shares:
            return ""
        floor, limit = self._shape.shares[tenant]
        return f"cache_floor = {floor}\ncache_limit = {limit}\n"

    def _toml(self, keys: Mapping[str, str]) -> str:
        """Defaults, but for what all systems share and what this run has to know."""
        setting = self._setting
        tenants = "".join(
            f'[[tenants]]\nname = "{tenant}"\n'
            f'keys_sha256 = ["{hashlib.sha256(key.encode()).hexdigest()}"]\n'
            f"{self._shares(tenant)}"
            for tenant, key in keys.items()
        )
        return f"""\
run_dir = "{self._run_dir}"
state_dir = "{self._state_dir}"

[model]
path = "{setting.model}"
name = "{MODEL_NAME}"
dtype = "{setting.dtype}"
compile = "{"on" if setting.compiled else "off"}"
block_size = {setting.block_size}
chunk_tokens = {setting.chunk_tokens}
max_model_len = {self._shape.max_model_len}

[proxy]
port = {setting.first_port + 90}
{self._shape.settings}
{tenants}"""


def locks(status: object) -> int:
    """All locked objects in a status page, wherever in it they are counted."""
    if isinstance(status, dict):
        own = sum(
            value
            for name, value in status.items()
            if name in ("read_locked_count", "write_locked_count") and isinstance(value, int)
        )
        return own + sum(locks(value) for value in status.values())
    if isinstance(status, list):
        return sum(locks(value) for value in status)
    return 0
