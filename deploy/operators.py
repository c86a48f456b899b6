"""What operators ask of a running proxy: ``kvferry explain``, ``flush`` and ``tenants``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.tables import table
from kvstore import credentials, probe
from kvstore.cluster import ClusterConfig, admin_address
from kvstore.credentials import TOKEN_HEADER
from kvstore.errors import ConfigError

SECONDS = 30.0


def ask(proxy: str, token: str, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    """What the proxy at ``proxy`` (``cluster.admin_address``) answers. Raises ConfigError."""
    headers = {TOKEN_HEADER: token}
    call = (
        probe.get(proxy, path, SECONDS, headers)
        if method == "GET"
        else probe.post(proxy, path, SECONDS, headers, body)
    )
    answer = asyncio.run(call)
    if answer.status == 0:
        raise ConfigError(f"no proxy answers at {proxy}: does it run, and on this host?")
    try:
        told = json.loads(answer.body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ConfigError(f"what answers at {proxy} is no proxy of kvferry's")
    if answer.status != 200:
        fault = told.get("error")
        message = fault.get("message") if isinstance(fault, dict) else None
        raise ConfigError(f"the proxy refuses: {message or answer.status}")
    return told


def asked(config: ClusterConfig, method: str, path: str) -> dict[str, Any]:
    """``ask`` of the proxy of ``config``, by the keys in its state folder."""
    token = credentials.load(Path(config.state_dir)).http_token()
    return ask(admin_address(config, Path(config.run_dir)), token, method, path)


def flush(config: ClusterConfig, tenant: str) -> str:
    """Flushes ``tenant``, and says what came of it. Raises ConfigError."""
    return flushed(asked(config, "POST", f"/admin/tenants/{quote(tenant, safe='')}/flush"))


def flushed(told: Mapping[str, Any]) -> str:
    """For people: what came of a flush."""
    size = sum(one["bytes"] for one in told["overwritten"]) / (1 << 20)
    places, seconds = len(told["overwritten"]), told["overwritten_ms"] / 1000
    reached = f"unreachable after {told['unreachable_ms']:.1f} ms"
    lines = [f"{told['tenant']}: epoch {told['epoch']}, {reached}"]
    lines.append(f"{size:.1f} MiB overwritten in {places} places after {seconds:.2f} s")
    if told["unconfirmed"]:
        lines.append(f"NOT CONFIRMED by {', '.join(told['unconfirmed'])}: do they run?")
    if told["not_overwritten_yet"]:
        lines.append(f"NOT OVERWRITTEN YET: {', '.join(told['not_overwritten_yet'])}")
    return "\n".join(lines)


def tenants(config: ClusterConfig) -> str:
    """What ``GET /admin/tenants`` tells, for people. Raises ConfigError."""
    told = asked(config, "GET", "/admin/tenants")["tenants"]
    return "\n".join(table([{**one, **_held(one)} for one in told], _COLUMNS))


_COLUMNS = {
    "tenant": "name",
    "epoch": "epoch",
    "running": "running",
    "floor": "cache_floor",
    "limit": "cache_limit",
    "GPU MiB": "gpu",
    "DRAM MiB": "dram",
}


def _held(tenant: Mapping[str, Any]) -> Mapping[str, float]:
    """MiB kept in each tier, of all workers."""
    return {
        tier: sum(one["kept"] for one in tenant["memory"] if one["tier"] == tier) / (1 << 20)
        for tier in ("gpu", "dram")
    }
