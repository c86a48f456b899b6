"""One stock vLLM engine behind its own OpenAI server, bound to one core."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from bench import counters, processes
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from bench.launchers.system import MODEL_NAME, START_SECONDS, Setting
from bench.processes import Child, StartFailed

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Opens /reset_prefix_cache, which makes an engine cold without a restart.
    "VLLM_SERVER_DEV_MODE": "1",
}

_RESET_SECONDS = 10.0
_ATTEMPTS = 2
"""An engine's start fails now and then while transformers' imports race; the next one succeeds."""


class Engine:
    """An engine process. ``core``: the CPU core its computing threads are bound to."""

    def __init__(self, name: str, core: int, setting: Setting, client: Client) -> None:
        self.name = name
        self._core = core
        self._setting = setting
        self._client = client
        self._port = setting.first_port + core
        self._child: Child | None = None
        self.endpoint = Endpoint(f"http://127.0.0.1:{self._port}")

    def launch(self, connector: Mapping[str, Any] | None, environ: Mapping[str, str]) -> None:
        """Start the process; ``connector`` is vLLM's ``--kv-transfer-config``."""
        setting = self._setting
        command = [
            *(setting.python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(setting.model), "--served-model-name", MODEL_NAME),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--dtype", setting.dtype),
            *("--max-num-batched-tokens", str(setting.chunk_tokens)),
            *("--block-size", str(setting.block_size)),
            "--enable-prompt-tokens-details",
            "--disable-access-log-for-endpoints=/health,/metrics",
        ]
        if not setting.compiled:
            command.append("--enforce-eager")
        if connector is not None:
            command += ["--kv-transfer-config", json.dumps(connector)]
        own = {
            "VLLM_CPU_OMP_THREADS_BIND": str(self._core),
            "VLLM_CPU_KVCACHE_SPACE": str(setting.kv_gib),
        }
        merged = {**setting.environ, **_QUIET, **own, **environ}
        self._child = processes.launch(self.name, command, merged, setting.logs)

    async def ready(self) -> None:
        """Wait until it serves. Raises StartFailed."""
        await processes.until_ready(self.child, self._healthy, START_SECONDS)

    async def stop(self) -> None:
        """End its processes, if it was launched."""
        if self._child is not None:
            await processes.stop(self._child)
            self._child = None

    async def reset(self) -> None:
        """Empty its prefix cache. Raises RequestFailed."""
        await reset(self._client, self.endpoint)

    async def counters(self) -> counters.CacheCounters:
        """Its cache counters. Raises RequestFailed."""
        return counters.parse(await self._client.text(self.endpoint, "/metrics"))

    @property
    def child(self) -> Child:
        """Its processes. Raises StartFailed if it is not running."""
        if self._child is None:
            raise StartFailed(f"{self.name} is not running")
        return self._child

    async def _healthy(self) -> bool:
        try:
            await self._client.text(self.endpoint, "/health")
        except RequestFailed:
            return False
        return True


async def reset(client: Client, endpoint: Endpoint) -> None:
    """Empty a vLLM server's prefix cache, as soon as no block is held. Raises RequestFailed."""
    deadline = time.monotonic() + _RESET_SECONDS
    while not (await client.post(endpoint, "/reset_prefix_cache")).get("success"):
        if time.monotonic() > deadline:
            raise RequestFailed(f"blocks are still held {_RESET_SECONDS:.0f} s after a request")
        await asyncio.sleep(0.05)


async def start_all(
    engines: Mapping[Engine, tuple[Mapping[str, Any] | None, Mapping[str, str]]],
) -> None:
    """Start engines together, each with its connector and environment; once again on a failure.

    Raises StartFailed with nothing left running.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        serving = False
        try:
            for engine, (connector, environ) in engines.items():
                engine.launch(connector, environ)
            for engine in engines:
                await engine.ready()
            serving = True
        except StartFailed:
            if attempt == _ATTEMPTS:
                raise
        finally:
            if not serving:
                for engine in engines:
                    await engine.stop()
        if serving:
            return
