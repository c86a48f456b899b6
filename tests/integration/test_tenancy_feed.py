"""What holds for tenants, over real sockets: from a proxy to relays, to other proxies, to who comes
later; from an engine and the DRAM tier's server back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import zmq

from kvstore.codec import encode
from kvstore.credentials import Credentials, load_or_create
from kvstore.feed import FeedClient
from kvstore.index import Directory
from kvstore.messages import Holding, Role, Standing, Usage, Wiped
from kvstore.standings import Standings
from kvstore.tenant_feed import TenantFeed
from kvstore.tier_server import TierServer
from tests.support.relays import RunningRelay, until

pytestmark = pytest.mark.timeout(120)

TAG = "a" * 16


class Site:
    """Two workers' relays in one folder."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir(mode=0o700)
        self.keys: Credentials = load_or_create(folder / "state")
        self.relays = {name: self.relay(name) for name in ("p", "d")}
        self._proxies = 0

    def relay(self, name: str) -> RunningRelay:
        return RunningRelay(self.run_dir, self.keys, self.feed(name), "prefill", worker=name)

    def feed(self, name: str) -> str:
        return f"zmq+ipc://{self.run_dir}/{name}.feed"

    @asynccontextmanager
    async def proxy(
        self, *names: str, tenants: TenantFeed | None = None
    ) -> AsyncIterator[FeedClient]:
        self._proxies += 1
        feeds: dict[str, Role] = {self.feed(name): "prefill" for name in names or self.relays}
        own = f"proxy-{self._proxies}"
        client = FeedClient(feeds, self.keys, own, Directory(3.0), tenants)
        task = asyncio.create_task(client.run())
        try:
            yield client
            assert client.dropped == 0
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def stop(self) -> None:
        for relay in self.relays.values():
            relay.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def test_a_flush_reaches_all_workers_and_proxies_at_once(site: Site) -> None:
    async def scenario() -> None:
        raised: list[tuple[str, int]] = []
        heard = TenantFeed(lambda tag, epoch: raised.append((tag, epoch)))
        async with site.proxy() as one, site.proxy(tenants=heard) as other:
            one.say([Standing(TAG, 1)])
            await until(lambda: one.tenants.confirmed(TAG, 1) == {"p", "d"})
            await until(lambda: other.tenants.confirmed(TAG, 1) == {"p", "d"})
            taken = []
            for epoch in range(2, 12):
                began = time.monotonic()
                one.say([Standing(TAG, epoch)])
                async with asyncio.timeout(5):
                    while one.tenants.confirmed(TAG, epoch) != {"p", "d"}:
                        await one.news()
                taken.append(time.monotonic() - began)
            await until(lambda: raised[-1:] == [(TAG, 11)])
            print(f"confirmed by two workers after {sorted(taken)[5] * 1000:.1f} ms (median)")

    asyncio.run(scenario())


def test_who_comes_later_cannot_bring_a_flushed_epoch_back(site: Site) -> None:
    async def scenario() -> None:
        async with site.proxy() as one:
            one.say([Standing(TAG, 3, 0.25, 0.5)])
            await until(lambda: one.tenants.confirmed(TAG, 3) == {"p", "d"})
        raised: list[tuple[str, int]] = []
        late = TenantFeed(lambda tag, epoch: raised.append((tag, epoch)))
        late.say([Standing(TAG, 1)])  # as its file says
        async with site.proxy("p", tenants=late) as other:
            await until(lambda: raised == [(TAG, 3)])
            # It knew before it knew the worker.
            await until(lambda: other.tenants.confirmed(TAG, 3) == {"p"})
            assert other.tenants.owed("p") == []

    asyncio.run(scenario())


def test_a_relay_that_was_started_anew_is_told_again(site: Site) -> None:
    async def scenario() -> None:
        async with site.proxy() as one:
            one.say([Standing(TAG, 3)])
            await until(lambda: one.tenants.confirmed(TAG, 3) == {"p", "d"})
            await asyncio.to_thread(site.relays["p"].stop)
            site.relays["p"] = await asyncio.to_thread(site.relay, "p")
            site.relays["p"].relay.engine_restarted("another")
            async with site.proxy("p") as other:
                await until(lambda: other.tenants.confirmed(TAG, 3) == {"p"})

    asyncio.run(scenario())


def test_what_an_engine_holds_of_tenants_is_passed_on(site: Site) -> None:
    async def scenario() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        engine = context.socket(zmq.PUSH)
        engine.connect(f"ipc://{site.run_dir}/p.t")
        async with site.proxy() as one:
            await until(lambda: "p" in {a.worker for a in one._directory.workers("prefill")})
            engine.send(encode(Usage("w", "gpu", 100, 0, 1, (Holding(TAG, 7),))))
            engine.send(b"no message")
            engine.send(encode(Wiped("w", "gpu", TAG, 1, 64, 0.5)))
            await until(lambda: bool(one.tenants.wiped(TAG, 1)))
            assert one.tenants.wiped(TAG, 1)[0].worker == "p"
            assert one.tenants.memory["p", "gpu"].holdings[TAG].kept == 7
        context.destroy(linger=0)

    asyncio.run(scenario())


def test_a_supervisor_hears_what_changes(site: Site) -> None:
    heard: list[Standing] = []
    site.relays["p"].changed.append(heard.extend)

    async def scenario() -> None:
        async with site.proxy("p") as one:
            one.say([Standing(TAG, 3)])
            await until(lambda: heard == [Standing(TAG, 3)])
            one.say([Standing(TAG, 3), Standing("b" * 16, 1)])
            await until(lambda: len(heard) == 2)
        assert heard[1] == Standing("b" * 16, 1)

    asyncio.run(scenario())


class OldMemory:
    """The DRAM tier's, which was there before all relays and proxies."""

    def __init__(self, *known: Standing) -> None:
        self.known = Standings()
        self.known.take(known)

    def stand(self, standings: Iterable[Standing]) -> None:
        self.known.take(standings)

    def flushed(self) -> list[Standing]:
        return [one for part in self.known.parts() for one in part if one.epoch]

    def usage(self) -> list[Usage]:
        return []

    def wiped(self) -> list[Wiped]:
        return []


def test_a_memory_that_outlived_all_relays_and_proxies_tells_them_of_flushes(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "tier").mkdir(mode=0o700)
    uri = f"zmq+ipc://{tmp_path}/tier/dram.feed"
    memory = OldMemory(Standing(TAG, 5, 0.25, 0.5))
    server = TierServer(uri, memory)
    heard: list[Standing] = []
    feed = f"zmq+ipc://{site.run_dir}/new.feed"
    relay = RunningRelay(site.run_dir, site.keys, feed, "prefill", uri, "new")
    relay.changed.append(heard.extend)
    raised: list[tuple[str, int]] = []
    late = TenantFeed(lambda tag, epoch: raised.append((tag, epoch)))
    late.say([Standing(TAG, 1, 0.0, 0.75)])  # as its file says

    async def scenario() -> None:
        async with site.proxy("new", tenants=late) as one:
            await until(lambda: one.tenants.confirmed(TAG, 5) == {"new"})
            await until(lambda: raised == [(TAG, 5)])
            await until(lambda: bool(heard) and heard[-1] == Standing(TAG, 5, 0.0, 0.75))
            # A flush from now on is news to the memory as well.
            one.say([Standing(TAG, 6)])
            await until(lambda: memory.known.of(TAG).epoch == 6)

    try:
        asyncio.run(scenario())
    finally:
        relay.stop()
        server.close()
