"""A relay in a thread and proxies' directories that follow it, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from kvstore.cluster import Addresses, Dram, Ship, WorkerSettings
from kvstore.credentials import Credentials
from kvstore.errors import ConfigError
from kvstore.feed import FeedClient
from kvstore.index import Directory
from kvstore.messages import PROTOCOL_VERSION, Announce, Role, Standing
from kvstore.relay import Relay

WAIT_SECONDS = 15.0

_NUMBERS = itertools.count()


class RunningRelay:
    """A relay in a thread, as a worker's supervisor runs it."""

    def __init__(
        self,
        run_dir: Path,
        credentials: Credentials,
        feed: str,
        role: Role,
        dram_feed: str = "",
        worker: str = "w",
    ) -> None:
        private = f"ipc://{run_dir}/{worker}"
        addresses = Addresses(
            "", "", feed, f"{private}.events", f"{private}.g", f"{private}.a", f"{private}.t"
        )
        settings = WorkerSettings(
            worker=worker,
            role=role,
            generation="g0",
            addresses=addresses,
            state_dir="",
            ship=Ship(),
            dram=Dram(),
            model_name="m",
            dram_feed=dram_feed,
        )
        announce = Announce(
            PROTOCOL_VERSION, worker, role, "g0", "starting", "m", "", "", "", 32, 8192, 100, 0
        )
        self.changed: list[Callable[[Sequence[Standing]], None]] = []
        self.relay = Relay(announce, settings, credentials, self._changed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.relay.wait_listening(WAIT_SECONDS)

    def _changed(self, standings: Sequence[Standing]) -> None:
        for hear in self.changed:
            hear(standings)

    def _run(self) -> None:
        with contextlib.suppress(ConfigError):  # wait_listening raises it
            self.relay.run(self._stop)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()


@contextlib.asynccontextmanager
async def following(feed: str, credentials: Credentials) -> AsyncIterator[Directory]:
    """What a proxy of its own name knows from ``feed``: of two of one name a relay keeps one."""
    directory = Directory(3.0)
    client = FeedClient({feed: "prefill"}, credentials, f"follower-{next(_NUMBERS)}", directory)
    task = asyncio.create_task(client.run())
    try:
        yield directory
        assert client.dropped == 0
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.01)
