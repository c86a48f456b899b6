"""What LMCache's server holds, through its feed and workers' relays, in a proxy's directory."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstore.blockhash import block_chain, block_names
from kvstore.cluster import Dram
from kvstore.credentials import Credentials, load_or_create
from kvstore.index import Directory
from kvstore.layout import KVGroup
from kvstore.lmcache_tier_link import Link, Naming, Registration
from tests.support.lmcache_server import LMCacheServer
from tests.support.relays import RunningRelay, following, until
from tests.support.salted import salt_of
from tests.support.tiers import BLOCK_SIZE, Both, over_lmcache

CHUNK, CHUNK_BLOCKS = 64, 2
MANY = 160
"""Chunks of a long prompt."""

SALT = salt_of("alice")
SLIDING = (KVGroup(("a",), 80), KVGroup(("b",)))


def prompt(seed: int, chunks: int = 4) -> list[int]:
    return [seed, *range(chunks * CHUNK + 7)]


def names(seed: int, chunks: int = 4) -> list[bytes]:
    return block_names(block_chain(prompt(seed, chunks), BLOCK_SIZE, SALT))


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return load_or_create(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def server() -> Iterator[LMCacheServer]:
    server = LMCacheServer(chunk_tokens=CHUNK)
    server.start()
    yield server
    server.stop()


@contextmanager
def engine(server: LMCacheServer, worker: str, namespace: str, **shape: Any) -> Iterator[Both]:
    """What a worker's engine has of the tier."""
    dram = Dram(chunk_tokens=CHUNK, port=server.port, operation_seconds=2.0)
    tier = over_lmcache(dram, server.locks, namespace=namespace, worker=worker, blocks=640, **shape)
    try:
        assert tier.ready()
        yield tier
    finally:
        tier.close()


def store_window(tier: Both, seed: int, end: int) -> None:
    blocks = range(len(tier.shape.window(end * CHUNK)))
    tier.copy.store(tier.window_op("writer", prompt(seed), SALT, blocks, end * CHUNK))
    assert tier.await_results(1)[0].ok


def store(tier: Both, seed: int, chunks: int = 4) -> None:
    """In operations of no more than 32 chunks."""
    tokens = prompt(seed, chunks)
    starts = range(0, chunks, 32)
    for first in starts:
        blocks = range(first * CHUNK_BLOCKS, min(first + 32, chunks) * CHUNK_BLOCKS)
        tier.copy.store(tier.op("writer", tokens, SALT, blocks, start=first * CHUNK))
    assert all(result.ok for result in tier.await_results(len(starts)))


class Watched:
    """What a proxy knows of one worker's DRAM tier."""

    def __init__(self, relay: RunningRelay, directory: Directory) -> None:
        self.relay = relay
        self._directory = directory

    def held(self, seed: int, chunks: int = 4) -> int:
        found = self._directory.held(names(seed, chunks)).get("w")
        return found.dram if found is not None else -1

    @property
    def blocks(self) -> int:
        return self._directory.blocks("w", "dram")

    @property
    def generation(self) -> str:
        return self._directory.wants("w")[0]

    async def has(self, blocks: int) -> None:
        await until(lambda: self.blocks == blocks)

    async def knows(self, seed: int, blocks: int) -> None:
        await until(lambda: self.held(seed) == blocks)


@asynccontextmanager
async def watched(
    run_dir: Path, credentials: Credentials, server: LMCacheServer
) -> AsyncIterator[Watched]:
    run_dir.mkdir(mode=0o700, exist_ok=True)
    feed = f"zmq+ipc://{run_dir}/w.feed"
    relay = RunningRelay(run_dir, credentials, feed, "prefill", server.feed)
    try:
        async with following(feed, credentials) as directory:
            yield Watched(relay, directory)
    finally:
        relay.stop()


def test_what_is_stored_is_known_and_what_is_cleared_is_not(
    tmp_path: Path, credentials: Credentials, server: LMCacheServer
) -> None:
    async def scenario(tier: Both) -> None:
        async with watched(tmp_path / "r", credentials, server) as proxy:
            await until(lambda: bool(proxy.generation))
            store(tier, 1)
            await proxy.knows(1, 8)
            store(tier, 2, chunks=2)
            await proxy.knows(2, 4)
            assert proxy.blocks == 12
            server.clear()
            await proxy.knows(1, 0)
            assert proxy.blocks == 0
            store(tier, 1)
            await proxy.knows(1, 8)

    with engine(server, "w", "stored") as tier:
        asyncio.run(scenario(tier))


def test_a_late_relay_and_a_restarted_engine_find_what_is_there(
    tmp_path: Path, credentials: Credentials, server: LMCacheServer
) -> None:
    async def scenario() -> None:
        with engine(server, "w", "late") as tier:
            store(tier, 1)
            async with watched(tmp_path / "r", credentials, server) as proxy:
                await proxy.knows(1, 8)
                store(tier, 2)
                await proxy.knows(2, 8)
        async with watched(tmp_path / "r", credentials, server) as proxy:
            await proxy.knows(2, 8)
            proxy.relay.relay.engine_restarted("g1")
            await until(lambda: proxy.generation == "g1")
            await proxy.knows(1, 8)
            with engine(server, "w", "late") as tier:
                store(tier, 3)
                await proxy.knows(3, 8)
                assert proxy.blocks == 24

    asyncio.run(scenario())


def test_what_one_worker_stored_another_of_its_kind_can_load(
    tmp_path: Path, credentials: Credentials, server: LMCacheServer
) -> None:
    async def scenario() -> None:
        with (
            engine(server, "other", "kind") as theirs,
            engine(server, "stranger", "another kind") as strange,
        ):
            store(theirs, 1)
            store(strange, 2)
            async with watched(tmp_path / "r", credentials, server) as proxy:
                with engine(server, "w", "a third kind") as mine:
                    store(mine, 4)
                    await proxy.knows(4, 8)
                    assert proxy.blocks == 8
                with engine(server, "w", "kind") as mine:
                    await proxy.knows(1, 8)
                    store(mine, 3)
                    await proxy.knows(3, 8)
                    assert (proxy.held(2), proxy.blocks) == (0, 16)
                with engine(server, "w", "another kind"):
                    await proxy.knows(2, 8)
                    assert (proxy.held(1), proxy.blocks) == (0, 8)

    asyncio.run(scenario())


def test_a_chunk_is_there_when_every_rank_has_stored_its_part(
    tmp_path: Path, credentials: Credentials, server: LMCacheServer
) -> None:
    async def scenario() -> None:
        with (
            engine(server, "w", "ranks", rank=(0, 2)) as one,
            engine(server, "w", "ranks", rank=(1, 2)) as two,
        ):
            async with watched(tmp_path / "r", credentials, server) as proxy:
                store(one, 1, chunks=4)
                store(two, 1, chunks=2)
                await proxy.knows(1, 4)
                store(two, 1, chunks=4)
                await proxy.knows(1, 8)

    asyncio.run(scenario())


def test_of_windows_only_what_can_be_resumed_anywhere_is_told(
    tmp_path: Path, credentials: Credentials, server: LMCacheServer
) -> None:
    async def scenario() -> None:
        with engine(server, "w", "windows", groups=SLIDING) as tier:
            async with watched(tmp_path / "r", credentials, server) as proxy:
                store(tier, 1)
                for number, (end, known) in enumerate([(4, 0), (1, 2), (2, 4), (3, 8)], start=1):
                    store_window(tier, 1, end)
                    await proxy.has(number * CHUNK_BLOCKS)
                    assert proxy.held(1) == known
                assert tier.found("reader", prompt(1), SALT) == 4 * CHUNK
                tier.lookup.end("reader")

    asyncio.run(scenario())


def test_the_tier_dies_and_comes_back_empty(tmp_path: Path, credentials: Credentials) -> None:
    server = LMCacheServer(chunk_tokens=CHUNK)

    async def scenario() -> None:
        with engine(server, "w", "dies") as tier:
            async with watched(tmp_path / "r", credentials, server) as proxy:
                store(tier, 1)
                await proxy.knows(1, 8)
                server.signal(signal.SIGSTOP)
                await proxy.knows(1, 0)
                server.signal(signal.SIGCONT)
                await proxy.knows(1, 8)
                server.kill()
                await proxy.knows(1, 0)
                server.start()
                assert tier.ready()
                store(tier, 2)
                await proxy.knows(2, 8)
                assert (proxy.held(1), proxy.blocks) == (0, 8)

    server.start()
    try:
        asyncio.run(scenario())
    finally:
        server.stop()


def test_what_was_reserved_and_never_filled_is_not_told(
    tmp_path: Path, credentials: Credentials, server: LMCacheServer
) -> None:
    """LMCache would publish it when its worker signs off or dies."""

    async def scenario() -> None:
        with engine(server, "w", "unfilled") as tier:
            link = Link(server.port)
            naming = Naming("unfilled", 1)
            place = Registration(link, naming, 0, sum(c[:2].nbytes for c in tier.caches.values()))
            place.open(BLOCK_SIZE, 2.0)
            key = naming.key(tuple(prompt(1)), SALT, (0, 4 * CHUNK), place.session(), 0)
            assert len(place.reserve(key, 2.0)) == 4
            place.sign_off(place._instance, 2.0)
            link.close()
            async with watched(tmp_path / "r", credentials, server) as proxy:
                store(tier, 2)
                await proxy.knows(2, 8)
                assert tier.found("reader", prompt(1), SALT) == 0
                tier.lookup.end("reader")
                assert (proxy.held(1), proxy.blocks) == (0, 8)
                store(tier, 1)
                await proxy.knows(1, 8)
                assert proxy.blocks == 16

    asyncio.run(scenario())


def test_what_is_evicted_is_known_chunk_by_chunk(
    tmp_path: Path, credentials: Credentials, server: LMCacheServer
) -> None:
    """Twice what the server can hold goes in; what is known is then what a lookup finds."""

    async def scenario() -> None:
        with engine(server, "w", "evicted") as tier:
            async with watched(tmp_path / "r", credentials, server) as proxy:
                chunk_bytes = sum(cache[:2].nbytes for cache in tier.caches.values())
                prompts = range(int(2 * server.gib * 2**30 / (MANY * chunk_bytes)))
                for seed in prompts:
                    store(tier, seed, MANY)
                    await asyncio.sleep(0)
                await until(lambda: found(tier, proxy, prompts))
                assert 0 < proxy.blocks < len(prompts) * MANY * CHUNK_BLOCKS

    asyncio.run(scenario())


def found(tier: Both, proxy: Watched, prompts: range) -> bool:
    """Whether the proxy knows of every prompt exactly what a lookup finds."""
    for seed in prompts:
        tokens = tier.found(f"reader-{seed}", prompt(seed, MANY), SALT)
        tier.lookup.end(f"reader-{seed}")
        if proxy.held(seed, MANY) * BLOCK_SIZE != tokens:
            return False
    return True
