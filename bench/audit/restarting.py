"""Ends engines of this host; their supervisors start others."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from bench.audit.deployment import Deployment
from bench.audit.errors import CannotAudit
from bench.client import Client, Endpoint
from bench.errors import RequestFailed

_BACK_SECONDS = 300.0
_LOOK_SECONDS = 0.5


class Restarter:
    """Kills engines of this host; their supervisors start them anew."""

    def __init__(self, deployment: Deployment, client: Client) -> None:
        self._deployment = deployment
        self._client = client

    async def restart(self, how: signal.Signals = signal.SIGKILL) -> float:
        """All engines; the seconds until every one answers again. Raises CannotAudit."""
        began, groups = time.monotonic(), self._deployment.groups()
        old = {name: _group(file) for name, file in groups.items()}
        for number in old.values():
            os.killpg(number, how)
        deadline = began + _BACK_SECONDS
        while not await self._back(groups, old):
            if time.monotonic() > deadline:
                raise CannotAudit(f"engines are not back {_BACK_SECONDS:.0f} s after their restart")
            await asyncio.sleep(_LOOK_SECONDS)
        return time.monotonic() - began

    async def _back(self, groups: Mapping[str, Path], old: Mapping[str, int]) -> bool:
        """Others are there, and the proxy has heard of all of them."""
        try:
            if any(_group(file) == old[name] for name, file in groups.items()):
                return False
        except (OSError, ValueError):  # between two engines
            return False
        proxy = Endpoint(self._deployment.base)
        config = self._deployment.config
        try:
            ready = await self._client.get(proxy, "/ready")
            for worker in self._deployment.workers:
                await self._client.text(worker.shown(self._deployment.token), "/health")
        except RequestFailed:
            return False
        return (ready.get("prefill"), ready.get("decode")) == (
            config.prefill.count,
            config.decode.count,
        )


def _group(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
