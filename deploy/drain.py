"""``kvferry drain``: nothing new for a worker; returns when it has finished what it had."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from kvstore import cluster, draining, probe
from kvstore.cluster import ClusterConfig
from kvstore.credentials import TOKEN_HEADER, Credentials
from kvstore.messages import Drain

ANSWER_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_PROBE_SECONDS = 5.0
_SETTLED_LOOKS = 3
"""So often in a row it must be idle: a proxy may have sent something before it heard."""

_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")


async def drain(
    config: ClusterConfig, credentials: Credentials, name: str, seconds: float
) -> float | None:
    """Seconds that ``name`` took to finish; None if it still has something after ``seconds``.

    Raises ConfigError where there is no such worker, or it does not answer.
    """
    await _wish(config, credentials, Drain(name, on=True))
    began, idle = time.monotonic(), 0
    while idle < _SETTLED_LOOKS:
        if time.monotonic() - began > seconds:
            return None
        await asyncio.sleep(_LOOK_SECONDS)
        idle = idle + 1 if await _busy(config, credentials, name) == 0 else 0
    return time.monotonic() - began


async def undo(config: ClusterConfig, credentials: Credentials, name: str) -> None:
    """The worker may be sent requests again. Raises ConfigError as ``drain``."""
    await _wish(config, credentials, Drain(name, on=False))


async def _wish(config: ClusterConfig, credentials: Credentials, wish: Drain) -> None:
    role, index = cluster.parse_worker_name(config, wish.worker)
    feed = cluster.addresses(config, Path(config.run_dir), role, index).feed
    await draining.drain(feed, role, wish, credentials, ANSWER_SECONDS)


async def _busy(config: ClusterConfig, credentials: Credentials, name: str) -> int | None:
    """Requests that its engine has; None where it does not say."""
    role, index = cluster.parse_worker_name(config, name)
    http = cluster.addresses(config, Path(config.run_dir), role, index).http
    token = {TOKEN_HEADER: credentials.http_token()}
    answer = await probe.get(http, "/metrics", _PROBE_SECONDS, token)
    return requests(answer.body.decode(errors="replace")) if answer.status == 200 else None


def requests(metrics: str) -> int | None:
    """Requests that an engine has, by its metrics; None where they do not say."""
    try:
        families = list(text_string_to_metric_families(metrics))
    except ValueError:
        return None
    found = [one.value for family in families for one in family.samples if one.name in _BUSY]
    return int(sum(found)) if found else None


def run(
    config: ClusterConfig,
    credentials: Credentials,
    name: str,
    seconds: float | None,
    tell: Callable[[str], None],
) -> int:
    """The command; ``seconds`` None takes the draining back. 0, or 1 where it took too long."""
    if seconds is None:
        asyncio.run(undo(config, credentials, name))
        tell(f"{name} is sent requests again")
        return 0
    taken = asyncio.run(drain(config, credentials, name, seconds))
    if taken is None:
        tell(f"{name} drains, but has not finished within {seconds:g} s: ask again, or stop it")
        return 1
    tell(f"{name} has finished all it had: it can be stopped, or taken back with --undo")
    return 0
