"""LMCache's real server with tenants in its memory, told by relays, seen in the shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq

from kvstore.cluster import Dram
from kvstore.messages import Standing, Tenancy, Usage, Wiped
from kvstore.tier_feed import TierFeed
from tests.support.lmcache_server import LMCacheServer
from tests.support.salted import salt_of, tag_of
from tests.support.tiers import BLOCK_SIZE, Both, over_lmcache, until

CHUNK, CHUNKS = 64, 32
"""Tokens of a chunk, chunks of a prompt."""

HELD = CHUNK * CHUNKS
MIB = 1 << 20
WIPE_SECONDS = 5.0
ALICE, BOB, LATER = salt_of("alice"), salt_of("bob"), salt_of("alice", 1)


class Relay:
    """A relay's end of the feed, and what it was told of tenants."""

    def __init__(self, uri: str, worker: str = "prefill-0") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._feed = TierFeed(self._context, uri, worker)
        self.held: dict[str, int] = {}
        self.wiped: list[Wiped] = []

    def __enter__(self) -> Relay:
        assert self.until(lambda: self._feed.tell(Tenancy("w", ())))
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.close()
        self._context.term()

    def say(self, tenant: str, epoch: int = 0, floor: float = 0.0, limit: float = 1.0) -> None:
        standing = Standing(tag_of(tenant), epoch, floor, limit)
        assert self._feed.tell(Tenancy("w", (standing,)))

    def until(self, holds: Callable[[], bool], seconds: float = 5.0) -> bool:
        def now() -> bool:
            self._feed.hear(time.monotonic())
            for told in self._feed.told():
                match told:
                    case Usage():
                        self.held = {one.tag: one.kept for one in told.holdings}
                    case Wiped():
                        self.wiped.append(told)
            return holds()

        return until(now, seconds)


@contextmanager
def engine(server: LMCacheServer, namespace: str) -> Iterator[Both]:
    """What a worker's engine has of the tier: chunks of 768 KiB, prompts of 24 MiB."""
    dram = Dram(chunk_tokens=CHUNK, port=server.port, operation_seconds=2.0)
    tier = over_lmcache(dram, server.locks, namespace=namespace, heads=48)
    try:
        assert tier.ready()
        yield tier
    finally:
        tier.close()


@pytest.fixture(scope="module")
def server() -> Iterator[LMCacheServer]:
    server = LMCacheServer(chunk_tokens=CHUNK, gib=0.5)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def tier(server: LMCacheServer, request: pytest.FixtureRequest) -> Iterator[Both]:
    server.clear()
    with engine(server, request.node.name) as tier:
        yield tier


def prompt(seed: int) -> list[int]:
    return [seed, *range(HELD)]


def paint(tier: Both, pattern: int) -> None:
    """Every byte of the pages is ``pattern``."""
    for cache in tier.caches.values():
        cache.view(torch.uint8).fill_(pattern)


def store(tier: Both, seed: int, salt: str) -> int:
    """How many bytes of it are there then."""
    tier.copy.store(tier.op("writer", prompt(seed), salt, range(HELD // BLOCK_SIZE)))
    (result,) = tier.await_results(1)
    assert result.ok
    block_bytes: int = sum(cache[0].nbytes for cache in tier.caches.values())
    return result.blocks * block_bytes


def load(tier: Both, seed: int, salt: str) -> str | None:
    """Why it could not be loaded; it has been found before."""
    tier.copy.load(tier.op(f"reader-{seed}", prompt(seed), salt, range(HELD // BLOCK_SIZE)))
    return tier.await_results(1)[0].reason


def found(tier: Both, seed: int, salt: str) -> int:
    held = tier.found(f"finder-{seed}", prompt(seed), salt)
    tier.lookup.end(f"finder-{seed}")
    return held


def patterned(server: LMCacheServer, pattern: int) -> int:
    """How many bytes of the shared memory are so, in words of eight (a seal may have any byte)."""
    (path,) = Path("/dev/shm").glob(f"*{server.name}*")
    words = np.memmap(path, dtype=np.uint64, mode="r")
    word = int.from_bytes(bytes([pattern]) * 8, "little")
    return 8 * sum(int((part == word).sum()) for part in np.array_split(words, 64))


def test_who_floods_evicts_its_own(server: LMCacheServer, tier: Both) -> None:
    with Relay(server.feed) as relay:
        relay.say("alice", floor=0.0, limit=0.25)
        relay.say("bob", floor=0.25)
        for seed in range(4):
            store(tier, seed, BOB)
        quota = int(0.25 * server.gib * 2**30)
        flooded = 0
        for seed in range(100, 200):
            flooded += store(tier, seed, ALICE)
            if flooded > 10 * quota:
                break
        assert flooded > 10 * quota
        assert [found(tier, seed, BOB) for seed in range(4)] == [HELD] * 4
        assert found(tier, seed, ALICE) == HELD
        assert relay.until(lambda: relay.held.get(tag_of("alice"), 0) > 0.9 * quota)
        assert relay.held[tag_of("alice")] <= quota
        assert relay.held[tag_of("bob")] >= 4 * 24 * MIB


def test_a_store_finds_room_in_a_memory_that_somebody_else_has_filled(
    server: LMCacheServer, tier: Both
) -> None:
    with Relay(server.feed) as relay:
        relay.say("alice", limit=1.0)
        relay.say("bob", floor=0.25)
        for seed in range(100, 130):
            store(tier, seed, ALICE)
        for seed in range(4):
            assert store(tier, seed, BOB) == 24 * MIB
            store(tier, 200 + seed, ALICE)
        assert [found(tier, seed, BOB) for seed in range(4)] == [HELD] * 4


def test_what_is_flushed_is_overwritten_in_time_wherever_it_lies(
    server: LMCacheServer, tier: Both
) -> None:
    with Relay(server.feed) as relay:
        relay.say("alice", 0)
        paint(tier, 0x5A)
        size = sum(store(tier, seed, ALICE) for seed in range(11))
        assert size > 256 * MIB
        paint(tier, 0xB7)
        others = store(tier, 50, BOB)
        assert tier.found("reader-3", prompt(3), ALICE) == HELD
        assert tier.found("waiter", prompt(4), ALICE) == HELD
        tier.lookup.keep("reader-3", 0, HELD)
        assert patterned(server, 0x5A) >= size
        begun = time.monotonic()
        relay.say("alice", 1)
        assert relay.until(lambda: bool(relay.wiped), WIPE_SECONDS)
        assert patterned(server, 0x5A) == 0
        assert time.monotonic() - begun < WIPE_SECONDS
        (wiped,) = relay.wiped
        assert (wiped.tier, wiped.tag, wiped.epoch) == ("dram", tag_of("alice"), 1)
        assert wiped.size >= size
        assert wiped.seconds < WIPE_SECONDS
        # Whoever had found it cannot load it, and nobody else is the worse for it.
        assert load(tier, 3, ALICE) == "no longer held"
        tier.lookup.end("waiter")
        assert patterned(server, 0xB7) >= others
        assert found(tier, 50, BOB) == HELD
        assert relay.until(lambda: tag_of("alice") not in relay.held)
        assert tier.unlocked()


def test_an_epoch_that_is_over_stays_over(server: LMCacheServer, tier: Both) -> None:
    with Relay(server.feed) as relay:
        relay.say("carol", 0)
        store(tier, 0, salt_of("carol"))
        relay.say("carol", 7)
        assert relay.until(lambda: bool(relay.wiped))
    with Relay(server.feed) as again:
        for told in (0, 6, 7):  # by whoever has not heard of it, and by who has
            again.say("carol", told)
            assert store(tier, 1, salt_of("carol", 6)) == 0
            assert found(tier, 0, salt_of("carol")) == 0
        assert again.until(lambda: bool(again.wiped))
        assert [(one.tag, one.epoch) for one in again.wiped] == [(tag_of("carol"), 7)]
    assert store(tier, 1, salt_of("carol", 7)) == 24 * MIB
    assert found(tier, 1, salt_of("carol", 7)) == HELD


def test_a_server_that_is_started_anew_is_told_again() -> None:
    server = LMCacheServer(chunk_tokens=CHUNK, gib=0.125)
    server.start()
    try:
        with Relay(server.feed) as relay, engine(server, "anew") as tier:
            relay.say("alice", 3)
            assert relay.until(lambda: bool(relay.wiped))
            server.kill()
            server.start()
            assert tier.ready()
            # Until it has been told it takes what is over, and then has it no more.
            store(tier, 0, ALICE)
            assert relay.until(lambda: relay._feed.tell(Tenancy("w", ())))
            relay.say("alice", 3)
            assert relay.until(lambda: len(relay.wiped) == 2)
            assert found(tier, 0, ALICE) == 0
            assert store(tier, 0, LATER) == 0
    finally:
        server.stop()
