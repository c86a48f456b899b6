"""What every DRAM tier does, run against one in memory and against LMCache's server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvstore.cluster import Dram
from kvstore.layout import KVGroup
from kvstore.tier import TierKey
from kvstore.tier_shape import TierShape
from tests.support.lmcache_server import LMCacheServer
from tests.support.memory_tier import MemoryCopy, MemoryLookup, MemoryStore
from tests.support.salted import once_of, salt_of
from tests.support.tiers import (
    BLOCK_SIZE,
    ONE_GROUP,
    Both,
    bits,
    kv_memory,
    over_lmcache,
    same,
)

CHUNK = 64
PROMPT = [(7 * at) % 49_000 for at in range(300)]
HELD = 256
SALT, OTHER = salt_of("alice"), salt_of("bob")
SLIDING = (KVGroup(("a",), 80), KVGroup(("b",)), KVGroup(("c",), 80))


@pytest.fixture(scope="module")
def server() -> Iterator[LMCacheServer]:
    server = LMCacheServer(chunk_tokens=CHUNK)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "lmcache"])
def tier(request: pytest.FixtureRequest) -> Iterator[Both]:
    if request.param == "memory":
        tier = in_memory(ONE_GROUP)
    else:
        tier = in_lmcache(request.getfixturevalue("server"), ONE_GROUP)
    yield tier
    tier.close()


@pytest.fixture(params=["memory", "lmcache"])
def windowed(request: pytest.FixtureRequest) -> Iterator[Both]:
    """A tier for a model with two sliding groups around one of full attention."""
    if request.param == "memory":
        tier = in_memory(SLIDING)
    else:
        tier = in_lmcache(request.getfixturevalue("server"), SLIDING)
    yield tier
    tier.close()


def in_memory(groups: tuple[KVGroup, ...]) -> Both:
    store = MemoryStore(TierShape(groups, BLOCK_SIZE, CHUNK))
    copy, caches = MemoryCopy(store), kv_memory()
    copy.attach(caches)
    return Both(MemoryLookup(store), copy, caches, lambda: (store.locked.total(), 0), store.shape)


def in_lmcache(server: LMCacheServer, groups: tuple[KVGroup, ...]) -> Both:
    dram = Dram(chunk_tokens=CHUNK, port=server.port, operation_seconds=2.0)
    tier = over_lmcache(dram, server.locks, groups=groups)
    assert tier.ready()
    return tier


def stored(tier: Both, blocks: range, salt: str = SALT) -> None:
    tier.copy.store(tier.op("writer", PROMPT, salt, blocks))
    (result,) = tier.await_results(1)
    assert (result.ok, result.kind, result.request) == (True, "store", "writer")


def test_loads_into_other_blocks_what_was_stored_bit_by_bit(tier: Both) -> None:
    stored(tier, range(8))
    assert tier.found("reader", PROMPT, SALT) == HELD
    tier.lookup.keep("reader", 0, HELD)
    into = [40, 33, 60, 20, 21, 22, 63, 50]
    tier.copy.load(tier.op("reader", PROMPT, SALT, into))
    (result,) = tier.await_results(1)
    assert (result.ok, result.kind, result.blocks) == (True, "load", 8)
    assert same(bits(tier.caches, range(8)), bits(tier.caches, into))
    tier.lookup.end("reader")
    assert tier.unlocked()


def test_chunk_by_chunk_stores_make_one_prompt(tier: Both) -> None:
    for number in range(4):
        blocks = range(2 * number, 2 * number + 2)
        tier.copy.store(tier.op("writer", PROMPT, SALT, blocks, start=CHUNK * number))
    results = tier.await_results(4)
    assert [r.ok for r in results] == [True] * 4
    assert len({r.op_id for r in results}) == 4
    assert tier.found("reader", PROMPT, SALT) == HELD
    tier.lookup.end("reader")
    assert tier.unlocked()


def test_another_salt_holds_nothing(tier: Both) -> None:
    stored(tier, range(8))
    assert tier.found("stranger", PROMPT, OTHER) == 0


@pytest.mark.parametrize("salt", ["", "c" * 64, once_of("alice")], ids=["none", "nobodys", "once"])
def test_what_may_not_be_kept_is_neither_stored_nor_found(tier: Both, salt: str) -> None:
    tier.copy.store(tier.op("writer", PROMPT, salt, range(8)))
    (result,) = tier.await_results(1)
    assert (result.ok, result.kind, result.blocks) == (False, "store", 0)
    assert tier.found("reader", PROMPT, salt) == 0
    tier.lookup.end("reader")
    assert tier.unlocked()


def test_a_prompt_that_differs_holds_only_what_is_equal(tier: Both) -> None:
    stored(tier, range(8))
    assert tier.found("near", [*PROMPT[:130], 1, *PROMPT[131:]], SALT) == 128
    assert tier.found("short", PROMPT[:63], SALT) == 0
    assert tier.found("exact", PROMPT[:128], SALT) == 128
    for request in ("near", "short", "exact"):
        tier.lookup.end(request)
    assert tier.unlocked()


def test_skipped_blocks_stay_as_they_are(tier: Both) -> None:
    stored(tier, range(8))
    assert tier.found("reader", PROMPT, SALT) == HELD
    tier.lookup.keep("reader", CHUNK + BLOCK_SIZE, HELD)
    into = range(20, 26)
    before = bits(tier.caches, [20])
    op = tier.op("reader", PROMPT, SALT, into, start=CHUNK, skip=1)
    tier.copy.load(op)
    assert tier.await_results(1)[0].ok
    assert same(before, bits(tier.caches, [20]))
    assert same(bits(tier.caches, range(3, 8)), bits(tier.caches, range(21, 26)))
    tier.lookup.end("reader")
    assert tier.unlocked()


def test_what_is_not_kept_is_unlocked(tier: Both) -> None:
    stored(tier, range(8))
    assert tier.found("reader", PROMPT, SALT) == HELD
    tier.lookup.keep("reader", 0, 0)
    assert tier.unlocked()
    tier.lookup.end("reader")
    tier.lookup.end("reader")
    assert tier.lookup.poll("reader") == 0
    assert tier.unlocked()


def test_two_requests_hold_the_same_chunks_independently(tier: Both) -> None:
    stored(tier, range(8))
    assert tier.found("one", PROMPT, SALT) == tier.found("two", PROMPT, SALT) == HELD
    tier.lookup.end("one")
    tier.lookup.keep("two", 0, HELD)
    tier.copy.load(tier.op("two", PROMPT, SALT, range(30, 38)))
    assert tier.await_results(1)[0].ok
    assert same(bits(tier.caches, range(8)), bits(tier.caches, range(30, 38)))
    assert tier.unlocked()


def test_a_withdrawn_request_gets_every_result_once_and_leaves_no_lock(tier: Both) -> None:
    stored(tier, range(8))
    assert tier.found("reader", PROMPT, SALT) == HELD
    tier.lookup.keep("reader", 0, HELD)
    ops = [tier.op("reader", PROMPT, SALT, range(8, 16)) for _ in range(20)]
    load = tier.op("reader", PROMPT, SALT, range(30, 38))
    tier.copy.load(load)
    for op in ops:
        tier.copy.store(op)
    tier.copy.withdraw("reader")
    after = bits(tier.caches, range(30, 38))
    results = tier.await_results(21)
    assert sorted(r.op_id for r in results) == sorted(op.op for op in [load, *ops])
    assert same(after, bits(tier.caches, range(30, 38)))
    tier.lookup.end("reader")
    assert tier.unlocked()
    assert tier.copy.drain() == []


def test_the_same_request_may_come_again(tier: Both) -> None:
    stored(tier, range(8))
    for _ in range(3):
        assert tier.found("again", PROMPT, SALT) == HELD
        tier.lookup.end("again")
    assert tier.found("again", PROMPT[::-1], SALT) == 0
    tier.lookup.end("again")
    assert tier.unlocked()


def test_a_second_start_changes_nothing(tier: Both) -> None:
    stored(tier, range(8))
    tier.lookup.start(TierKey("reader", PROMPT, SALT))
    assert tier.found("reader", PROMPT, SALT) == HELD
    tier.lookup.end("reader")
    assert tier.unlocked()


# --- models with sliding windows


def stored_with_window(tier: Both, end: int, window: range) -> None:
    """The chunks up to ``HELD`` from blocks 0 on, and the window before ``end``."""
    stored(tier, range(8))
    tier.copy.store(tier.window_op("writer", PROMPT, SALT, window, end))
    (result,) = tier.await_results(1)
    assert (result.ok, result.blocks) == (True, len(window))


def test_chunks_without_their_window_are_not_held(windowed: Both) -> None:
    stored(windowed, range(8))
    assert windowed.found("reader", PROMPT, SALT) == 0
    windowed.lookup.end("reader")
    assert windowed.unlocked()


@pytest.mark.parametrize("end", [HELD, 128, 64])
def test_a_prompt_is_held_up_to_its_last_window(windowed: Both, end: int) -> None:
    window = range(10, 10 + len(windowed.shape.window(end)))
    stored_with_window(windowed, end, window)
    assert windowed.found("reader", PROMPT, SALT) == end
    windowed.lookup.keep("reader", 0, end)
    into = range(30, 30 + end // BLOCK_SIZE)
    windowed.copy.load(windowed.op("reader", PROMPT, SALT, into))
    windowed.copy.load(windowed.window_op("reader", PROMPT, SALT, [at + 40 for at in window], end))
    assert [r.ok for r in windowed.await_results(2)] == [True, True]
    assert same(bits(windowed.caches, range(len(into))), bits(windowed.caches, into))
    moved = [at + 40 for at in window]
    assert same(bits(windowed.caches, window), bits(windowed.caches, moved))
    windowed.lookup.end("reader")
    assert windowed.unlocked()


def test_a_window_that_is_not_loaded_is_unlocked(windowed: Both) -> None:
    stored_with_window(windowed, 128, range(10, 10 + len(windowed.shape.window(128))))
    for kept in (True, False):
        assert windowed.found("r", PROMPT, SALT) == 128
        if kept:
            windowed.lookup.keep("r", 0, 0)
        windowed.lookup.end("r")
        assert windowed.unlocked()


def test_a_window_is_its_tenants_and_its_prompts(windowed: Both) -> None:
    stored_with_window(windowed, 128, range(10, 10 + len(windowed.shape.window(128))))
    assert windowed.found("stranger", PROMPT, OTHER) == 0
    near = [*PROMPT[:100], 1, *PROMPT[101:]]
    assert windowed.found("near", near, SALT) == 0
    for request in ("stranger", "near"):
        windowed.lookup.end(request)
    assert windowed.unlocked()
