"""Makes prefill engines forget a prompt that the DRAM tier keeps, on a deployment that is live.

Other prompts, too short for the DRAM tier to keep anything of them, push it out of the engines'
memory.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from bench.audit.asking import Answer
from bench.audit.deployment import Deployment
from bench.client import Client
from bench.errors import RequestFailed

AT_ONCE = 4
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
                told = await client.text(worker.shown(deployment.token), "/metrics")
            except RequestFailed:
                return None
            match = _BLOCKS.search(told)
            if match is None:
                return None
            found += int(match[1])
    return found
