"""Stock vLLM with LMCache alone: two engines over one DRAM tier, prefill and decode in each.

Requests are dealt round robin, as with two plain engines; what one has computed, the other finds
in DRAM.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from bench import processes
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from bench.launchers.engine import Engine, start_all
from bench.launchers.lanes import Lanes
from bench.launchers.system import START_SECONDS, Setting
from bench.processes import Child

TIER_GIB = 2
CHUNK_TOKENS = 256
"""LMCache's own default."""

_QUIET = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}


class LMCachePair(Lanes):
    """See Lanes. The engines forget, the tier does not."""

    name = "lmcache"

    def __init__(self, setting: Setting, client: Client) -> None:
        engines = [Engine(f"lmcache-{core}", core, setting, client) for core in (0, 1)]
        super().__init__(engines, client)
        self._setting = setting
        self._port, self._http_port = setting.first_port + 60, setting.first_port + 61
        self._server: Child | None = None

    async def start(self) -> None:
        """See System."""
        await self._start_server()
        try:
            await start_all({engine: (self._connector(), _QUIET) for engine in self._engines})
        except processes.StartFailed:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See System."""
        for engine in self._engines:
            await engine.stop()
        if self._server is not None:
            await processes.stop(self._server)
            self._server = None

    def children(self) -> Sequence[Child]:
        """See System."""
        server = [self._server] if self._server is not None else []
        return [*server, *(engine.child for engine in self._engines)]

    async def _start_server(self) -> None:
        command = [
            *(self._setting.python, "-m", "lmcache.cli.main", "server"),
            *("--l1-size-gb", str(TIER_GIB), "--chunk-size", str(CHUNK_TOKENS)),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--http-host", "127.0.0.1", "--http-port", str(self._http_port)),
            *("--shm-name", f"bench-{secrets.token_hex(4)}"),
            *("--supported-transfer-mode", "engine_driven", "--eviction-policy", "LRU"),
        ]
        environ = {**self._setting.environ, **_QUIET}
        self._server = processes.launch("lmcache-server", command, environ, self._setting.logs)
        await processes.until_ready(self._server, self._serving, START_SECONDS)

    async def _serving(self) -> bool:
        try:
            await self._client.text(Endpoint(f"http://127.0.0.1:{self._http_port}"), "/status")
        except RequestFailed:
            return False
        return True

    def _connector(self) -> Mapping[str, Any]:
        return {
            "kv_connector": "LMCacheMPConnector",
            "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "lmcache.mp.host": "tcp://127.0.0.1",
                "lmcache.mp.port": self._port,
                "lmcache.mp.mp_transfer_mode": "engine_driven",
            },
        }
