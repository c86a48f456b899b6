"""Makes prefill engines forget a prompt that the DRAM tier keeps, on a deployment that is live.

Either other prompts, too short for the DRAM tier to keep anything of them, push it out of the
engines' memory; or the engines' processes are killed, where that is allowed, and their supervisors
start others.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from bench.audit.asking import Answer
from bench.audit.deployment import Deployment, Worker
from bench.audit.errors import CannotAudit
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from kvstore.credentials import TOKEN_HEADER

AT_ONCE = 4
_BACK_SECONDS = 300.0
_LOOK_SECONDS = 0.5
_BLOCKS = re.compile(r'^vllm:cache_config_info\{.*num_gpu_blocks="(\d+)"', re.MULTILINE)


async def crowded_out(
    gone: Callable[[], Awaitable[bool]],
    crowd: Callable[[], Awaitable[Answer]],
    most: int | None,
    budget: float,
) -> str:
    """Asks for ``crowd`` after crowd until the prompt is ``gone``; "" then, else why it is not.

    ``most``: about how many it takes, where that is known. Gives up at once where these would take
    longer than ``budget`` seconds.
    """
    began, asked = time.monotonic(), 0
    while not await gone():
        spent = time.monotonic() - began
        if asked and most and most / asked * spent > 2 * budget:
            return f"pushing it out of prefill's memory would take {most / asked * spent:.0f} s"
        if spent > budget:
            return f"{asked} prompts in {spent:.0f} s did not push it out of prefill's memory"
        answers = await asyncio.gather(*(crowd() for _ in range(AT_ONCE)))
        failed = [answer.error for answer in answers if answer.error]
        if failed:
            return f"pushing it out failed: {failed[0]}"
        asked += AT_ONCE
    return ""


async def prefill_blocks(deployment: Deployment, client: Client) -> int | None:
    """Blocks in all prefill engines' memory; None where they do not tell."""
    found = 0
    for worker in deployment.workers:
        if worker.role == "prefill":
            try:
                told = await client.text(shown(worker, deployment.token), "/metrics")
            except RequestFailed:
                return None
            match = _BLOCKS.search(told)
            if match is None:
                return None
            found += int(match[1])
    return found


def shown(worker: Worker, token: str) -> Endpoint:
    """Where ``worker`` is asked with the cluster's ``token``."""
    at = worker.endpoint
    return Endpoint(at.base, {TOKEN_HEADER: token}, at.socket)


class Restarter:
    """Kills engines of this host; their supervisors start them anew."""

    def __init__(self, deployment: Deployment, client: Client) -> None:
        self._deployment = deployment
        self._client = client

    async def restart(self) -> float:
        """All engines; the seconds until every one answers again. Raises CannotAudit."""
        began, groups = time.monotonic(), self._deployment.groups()
        old = {name: _group(file) for name, file in groups.items()}
        for number in old.values():
            os.killpg(number, signal.SIGKILL)
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
                await self._client.text(shown(worker, self._deployment.token), "/health")
        except RequestFailed:
            return False
        return (ready.get("prefill"), ready.get("decode")) == (
            config.prefill.count,
            config.decode.count,
        )


def _group(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
