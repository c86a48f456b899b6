"""Proxies and operators at real relays: each knows what the others gave, all what drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kvstore.credentials import Credentials, load_or_create
from kvstore.draining import drain
from kvstore.errors import ConfigError
from kvstore.feed import FeedClient
from kvstore.index import Directory
from kvstore.messages import Announce, Drain
from proxy.loads import Loads
from proxy.prompts import Layout, Prompt
from proxy.turns import Turns
from tests.support.relays import RunningRelay, until

LAYOUT = Layout("m", "", 32)
SECOND = Prompt("a", 19_800, [])
"""Takes a worker one second, as far as anybody knows."""


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return load_or_create(tmp_path / "state")


@pytest.fixture
def feed(tmp_path: Path, credentials: Credentials) -> Iterator[str]:
    tmp_path.chmod(0o700)
    uri = f"zmq+ipc://{tmp_path}/w.feed"
    running = RunningRelay(tmp_path, credentials, uri, "prefill")
    running.relay.set_state("ready")
    yield uri
    running.stop()


class OneProxy:
    def __init__(self, name: str, feed: str, credentials: Credentials) -> None:
        self.directory = Directory(3.0)
        self.feed = FeedClient({feed: "prefill"}, credentials, name, self.directory)
        clock = asyncio.get_running_loop().time
        self.turns = Turns(self.directory, self.feed, 9, clock)
        self.loads = Loads(self.feed)

    @property
    def worker(self) -> Announce | None:
        ready = [one for one in self.directory.workers("prefill") if one.state == "ready"]
        return ready[0] if ready else None

    def sees(self, proxies: int) -> bool:
        return self.worker is not None and self.worker.proxies == proxies


@contextlib.asynccontextmanager
async def running(proxy: OneProxy) -> AsyncIterator[OneProxy]:
    task = asyncio.create_task(proxy.feed.run(proxy.turns.look))
    try:
        yield proxy
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def two_proxies(
    feed: str, credentials: Credentials
) -> AsyncIterator[tuple[OneProxy, OneProxy]]:
    """Two that know of each other."""
    async with (
        running(OneProxy("one", feed, credentials)) as one,
        running(OneProxy("two", feed, credentials)) as two,
    ):
        await until(lambda: one.sees(2) and two.sees(2))
        yield one, two


def test_a_worker_that_one_has_busy_is_busy_for_the_other(
    feed: str, credentials: Credentials
) -> None:
    async def scenario() -> None:
        async with two_proxies(feed, credentials) as (one, two):
            given = await one.turns.take(LAYOUT, SECOND, 1e9)
            assert given is not None
            await until(lambda: bool(list(two.feed.engagements)))
            waiting = asyncio.create_task(two.turns.take(LAYOUT, SECOND, 1e9))
            await asyncio.sleep(0)
            assert not waiting.done()
            one.turns.ended(given, computed=True)
            second = await asyncio.wait_for(waiting, 0.5)  # long before it was to be expected
            assert second is not None
            await until(lambda: bool(list(one.feed.engagements)))

    asyncio.run(scenario())


def test_who_comes_later_hears_of_what_is_there_and_who_leaves_has_nothing_there(
    feed: str, credentials: Credentials
) -> None:
    async def scenario() -> None:
        async with running(OneProxy("two", feed, credentials)) as two:
            async with (
                running(OneProxy("one", feed, credentials)) as one,
                running(OneProxy("three", feed, credentials)) as three,
            ):
                await until(lambda: one.sees(3))
                await one.turns.take(LAYOUT, SECOND, 1e9)
                await until(lambda: bool(list(three.feed.engagements)))
                async with running(OneProxy("late", feed, credentials)) as late:
                    await until(lambda: bool(list(late.feed.engagements)))
                    assert late.feed.dropped == 0
                assert list(two.feed.engagements)
            await until(lambda: not list(two.feed.engagements))

    asyncio.run(scenario())


def test_a_worker_that_drains_is_known_to_all_and_may_be_taken_back(
    feed: str, credentials: Credentials
) -> None:
    async def scenario() -> None:
        async with running(OneProxy("one", feed, credentials)) as one:
            await until(lambda: one.worker is not None)
            for on, state in ((True, "draining"), (False, "ready")):
                wish = Drain("w", on=on)
                assert await drain(feed, "prefill", wish, credentials, 5.0) == state
                await until(lambda on=on: (one.worker is None) == on)  # type: ignore[misc]

    asyncio.run(scenario())


def test_nobody_answers_for_a_worker_that_does_not_run(
    tmp_path: Path, credentials: Credentials
) -> None:
    tmp_path.chmod(0o700)
    nowhere = f"zmq+ipc://{tmp_path}/nobody.feed"
    with pytest.raises(ConfigError, match="does it run"):
        asyncio.run(drain(nowhere, "prefill", Drain("w", on=True), credentials, 0.5))


def test_requests_of_another_proxy_count_on_decode_workers(
    feed: str, credentials: Credentials
) -> None:
    async def scenario() -> None:
        async with two_proxies(feed, credentials) as (one, two):
            worker = one.worker
            assert worker is not None
            one.feed.tell(worker, 3, 0.0)
            await until(lambda: dict(two.loads.elsewhere()) == {("w", "g0"): 3})
            one.feed.tell(worker, 0, 0.0)
            await until(lambda: not dict(two.loads.elsewhere()))

    asyncio.run(scenario())
