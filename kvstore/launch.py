"""The command that starts a worker's engine: the stock vLLM server with our parts plugged in.

Pure: settings in, argument list and environment out. vLLM is named here, never imported.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from kvstore.adapters import ReadAdapter
from kvstore.cluster import ClusterConfig, WorkerSettings
from kvstore.machine import Machine

SERVER = "vllm.entrypoints.launchers.api_server.entry"
SETTINGS_KEY = "kvferry"
"""As in ``kvstore.engine_facts``, which imports torch; a test keeps the two equal."""

MOST_ADAPTERS_AT_ONCE = 8
"""In one step of an engine on a GPU; what asks for another one waits for the next."""

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for."""

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")

QUIET: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
    # A killed process leaves shared memory; that it was cleaned up after is no news.
    "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
}
"""Dependencies tell nobody about us, and the log only what matters."""

NOWHERE = "nothing-is-fetched.invalid"
"""The only host that an engine may fetch media from: a name that no host can have (RFC 2606)."""

CLOSED: Mapping[str, str] = {
    # Nobody loads an adapter that no revision was taken of, and the base answers for none.
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "0",
    "VLLM_MEDIA_CACHE": "",
    "VLLM_MEDIA_CONNECTOR": "http",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
}
"""Whatever the environment says, a request makes an engine load, fetch, run or write nothing.

vLLM's development mode is the operator's to choose: of its routes the gate passes one, which
empties the engine's cache for tests and benchmarks, and the self-check tells of it.
"""


@dataclass(frozen=True)
class Connector:
    """A role's connector and gate, as vLLM loads them."""

    name: str
    module: str
    kv_role: Literal["kv_producer", "kv_consumer"]
    gate: str


@dataclass(frozen=True)
class Command:
    """What to run. ``env`` is added to the environment of the one who runs it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def is_hub_id(path: str) -> bool:
    """Whether ``path`` names a model on a hub instead of a folder here."""
    return _HUB_ID.match(path) is not None and not Path(path).exists()


def engine_command(
    config: ClusterConfig,
    settings: WorkerSettings,
    machine: Machine,
    connector: Connector,
    verbose: bool,
) -> Command:
    """The engine of the worker of ``settings``."""
    flags = (
        *_model_flags(config, settings),
        *_cache_flags(config, settings),
        *_http_flags(settings, connector.gate),
        *("--kv-transfer-config", json.dumps(_transfer(settings, connector))),
    )
    return Command((sys.executable, "-m", SERVER, *flags), _env(config, settings, machine, verbose))


def with_adapters(command: Command, adapters: Sequence[ReadAdapter], machine: Machine) -> Command:
    """``command``, of an engine that also serves ``adapters``, each under its ``served.model``."""
    if not adapters:
        return command
    number = len(adapters)
    rank = min(known for known in _LORA_RANKS if all(one.rank <= known for one in adapters))
    # On CPU what is for the base alone is computed with the last place's adapter, if any of the
    # batch has one (vLLM's pull request 48421): that place stays empty, so no other may be scarce.
    at_once = number + 1 if machine.device == "cpu" else min(number, MOST_ADAPTERS_AT_ONCE)
    # All of them stay in host memory: one that was dropped would be read anew, whatever it is then.
    kept = max(number, at_once)
    flags = ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(at_once)]
    flags += ["--max-cpu-loras", str(kept), "--lora-modules"]
    modules = ({"name": one.served.model, "path": one.served.path} for one in adapters)
    return Command((*command.argv, *flags, *map(json.dumps, modules)), command.env)


def _model_flags(config: ClusterConfig, settings: WorkerSettings) -> tuple[str, ...]:
    model, section = config.model, config.workers(settings.role)
    flags = ["--model", model.path, "--served-model-name", settings.model_name]
    flags += ["--dtype", model.dtype, "--tensor-parallel-size", str(section.ranks)]
    flags += ["--max-num-batched-tokens", str(model.chunk_tokens)]
    flags += ["--max-num-seqs", str(min(section.max_requests, model.chunk_tokens))]
    if model.compile == "off":
        flags.append("--enforce-eager")
    if model.max_model_len:
        flags += ["--max-model-len", str(model.max_model_len)]
    if model.tool_parser:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", model.tool_parser]
    if model.reasoning_parser:
        flags += ["--reasoning-parser", model.reasoning_parser]
    return tuple(flags)


def _cache_flags(config: ClusterConfig, settings: WorkerSettings) -> tuple[str, ...]:
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": settings.addresses.events,
        "replay_endpoint": f"{settings.addresses.events}-replay",
    }
    # In bytes, because vLLM's setting for the CPU takes whole GiB only; and for each rank.
    section = config.workers(settings.role)
    kv_bytes = int(section.kv_gib * (1 << 30)) // section.ranks
    flags = ["--enable-prefix-caching", "--prefix-caching-hash-algo", "sha256_cbor"]
    flags += ["--kv-cache-memory-bytes", str(kv_bytes), "--kv-events-config", json.dumps(events)]
    if config.model.block_size:
        flags += ["--block-size", str(config.model.block_size)]
    return tuple(flags)


def _http_flags(settings: WorkerSettings, gate: str) -> tuple[str, ...]:
    flags = ["--enable-prompt-tokens-details", "--enable-scale-out", "--middleware", gate]
    flags += ["--disable-uvicorn-access-log", "--no-enable-log-requests", "--disable-fastapi-docs"]
    # Development mode would have it otherwise, and what fails may quote a prompt.
    flags += ["--no-log-error-stack"]
    flags += ["--uvicorn-log-level", "warning", "--allowed-media-domains", NOWHERE]
    http = settings.addresses.http
    if http.startswith("unix:"):
        return (*flags, "--uds", http.removeprefix("unix:"))
    parts = urlsplit(http)
    return (*flags, "--host", str(parts.hostname), "--port", str(parts.port))


def _transfer(settings: WorkerSettings, connector: Connector) -> dict[str, object]:
    return {
        "kv_connector": connector.name,
        "kv_connector_module_path": connector.module,
        "kv_role": connector.kv_role,
        "engine_id": f"{settings.worker}.{settings.generation}",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {SETTINGS_KEY: msgspec.to_builtins(settings)},
    }


def _env(
    config: ClusterConfig, settings: WorkerSettings, machine: Machine, verbose: bool
) -> dict[str, str]:
    env = {
        **QUIET,
        **CLOSED,
        "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",
        "VLLM_LOGGING_LEVEL": "INFO" if verbose else "WARNING",
    }
    if not is_hub_id(config.model.path):
        env["HF_HUB_OFFLINE"] = "1"
    section = config.workers(settings.role)
    index = int(settings.worker.rpartition("-")[2])
    if machine.device == "cpu":
        env["THP_MEM_ALLOC_ENABLE"] = "1"  # torch's: KV in huge pages is read a fifth faster
        bound = section.cores[index % len(section.cores)] if section.cores else "auto"
        env["VLLM_CPU_OMP_THREADS_BIND"] = bound
    elif machine.gpus:
        before = 0 if settings.role == "prefill" else config.prefill.count * config.prefill.ranks
        first = before + index * section.ranks
        chosen = [
            machine.gpus[at % len(machine.gpus)] for at in range(first, first + section.ranks)
        ]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return env
