"""What a proxy does beside requests, for as long as it serves."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

_Work = Coroutine[Any, Any, None]

log = logging.getLogger("kvferry.proxy")


@asynccontextmanager
async def running(feed: _Work, others: Mapping[str, _Work]) -> AsyncIterator[None]:
    """Runs ``feed`` and ``others``, by name, while entered. Raises what ends the feed at once.

    A proxy whose feed ends later has nobody to send requests to: it stops, as on SIGTERM, so that
    whoever started it starts another one. What else ends is told, and missed.
    """
    following = asyncio.create_task(feed, name="feed")
    tasks = {following, *(asyncio.create_task(work, name=name) for name, work in others.items())}
    for task in tasks:
        task.add_done_callback(_report)
    await asyncio.sleep(0)
    if following.done():
        following.result()
    following.add_done_callback(_stop)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s ended: %s: %s", task.get_name(), type(error).__name__, error)


def _stop(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        signal.raise_signal(signal.SIGTERM)
