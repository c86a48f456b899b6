"""The DRAM tier against LMCache's server when it is absent, hangs, dies, lies or is full."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kvstore.cluster import Dram
from kvstore.errors import ConfigError
from kvstore.lmcache_tier import namespace
from kvstore.lmcache_tier_link import Link, Naming, Registration
from kvstore.tier import TierKey
from tests.support.lmcache_server import LMCacheServer
from tests.support.salted import once_of, salt_of
from tests.support.tiers import BLOCK_SIZE, Both, bits, over_lmcache, same, until

CHUNK = 64
HELD = 256
SALT = salt_of("alice")
BLOCKING_SECONDS = 0.1
"""More than any call of the engine's may take, even on a busy machine."""


def prompt(seed: int = 0) -> list[int]:
    return [seed, *range(HELD + 7)]


def dram_of(server: LMCacheServer) -> Dram:
    return Dram(chunk_tokens=CHUNK, port=server.port, operation_seconds=1.0, lookup_seconds=0.25)


@contextmanager
def serving(server: LMCacheServer) -> Iterator[LMCacheServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def tier_over(server: LMCacheServer, namespace: str = "", blocks: int = 64) -> Iterator[Both]:
    tier = over_lmcache(dram_of(server), server.locks, namespace=namespace, blocks=blocks)
    try:
        yield tier
    finally:
        tier.close()


@pytest.fixture(scope="module")
def server() -> Iterator[LMCacheServer]:
    with serving(LMCacheServer(chunk_tokens=CHUNK)) as server:
        yield server


@pytest.fixture
def tier(server: LMCacheServer) -> Iterator[Both]:
    with tier_over(server) as tier:
        assert tier.ready()
        yield tier


def swift(call: Callable[[], object]) -> None:
    """Call it; it must not have waited for anything."""
    before = time.monotonic()
    call()
    assert time.monotonic() - before < BLOCKING_SECONDS


def store(tier: Both, seed: int = 0) -> bool:
    tier.copy.store(tier.op("writer", prompt(seed), SALT, range(8)))
    return tier.await_results(1)[0].ok


def load(tier: Both, seed: int, blocks: range) -> bool:
    request = f"reader-{seed}"
    assert tier.found(request, prompt(seed), SALT) == HELD
    tier.lookup.keep(request, 0, HELD)
    tier.copy.load(tier.op(request, prompt(seed), SALT, blocks))
    tier.lookup.end(request)
    return tier.await_results(1)[0].ok


def test_a_server_that_is_not_there_yet(caplog: pytest.LogCaptureFixture) -> None:
    server = LMCacheServer(chunk_tokens=CHUNK)
    with tier_over(server) as tier:
        swift(lambda: tier.lookup.start(TierKey("one", prompt(), SALT)))
        assert tier.lookup.poll("one") == 0
        swift(lambda: tier.copy.store(tier.op("one", prompt(), SALT, range(8))))
        swift(lambda: tier.copy.load(tier.op("one", prompt(), SALT, range(8))))
        swift(lambda: tier.copy.withdraw("one"))
        swift(lambda: tier.lookup.end("one"))
        assert [r.ok for r in tier.await_results(2, seconds=0.1)] == [False, False]
        time.sleep(2.5)
        assert tier.copy.status() == "down"
        with serving(server):
            assert tier.ready()
            assert store(tier)
            assert load(tier, 0, range(20, 28))
            lines = [r.message for r in caplog.records if r.name == "kvferry.tier"]
    assert len([line for line in lines if line.startswith("DRAM tier down:")]) == 1
    assert lines.count("DRAM tier up") == 1


def test_a_server_that_dies_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    server = LMCacheServer(chunk_tokens=CHUNK)
    with serving(server), tier_over(server) as tier:
        assert tier.ready()
        assert store(tier)
        assert tier.found("held", prompt(), SALT) == HELD
        server.kill()
        swift(lambda: tier.lookup.start(TierKey("two", prompt(), SALT)))
        assert until(lambda: tier.lookup.poll("two") == 0, seconds=0.5)
        assert until(lambda: tier.copy.status() == "down", seconds=4)
        tier.lookup.keep("held", 0, HELD)
        tier.copy.load(tier.op("held", prompt(), SALT, range(8)))
        assert not tier.await_results(1, seconds=0.5)[0].ok
        server.start()
        assert tier.ready(seconds=5)
        assert tier.found("three", prompt(), SALT) == 0
        assert store(tier)
        assert load(tier, 0, range(30, 38))
        assert same(bits(tier.caches, range(8)), bits(tier.caches, range(30, 38)))
        assert tier.unlocked()
        changes = [r.message.split(":")[0] for r in caplog.records if r.name == "kvferry.tier"]
    assert changes.count("DRAM tier down") == 1
    assert changes.count("DRAM tier down for lookups") == 1


def test_a_registration_that_the_server_has_lost() -> None:
    """LMCache answers nothing to it: the op fails, and we register anew."""
    server = LMCacheServer(chunk_tokens=CHUNK)
    with serving(server), tier_over(server) as tier:
        assert tier.ready()
        place_less = Link(server.port)
        instance = next(iter(server.status()["registered_non_cuda_instance_ids"]))
        place_less.client.unregister_kv_cache_engine_driven_context(instance).wait(2)
        place_less.close()
        assert until(lambda: store(tier), seconds=8)
        assert tier.found("reader", prompt(), SALT) == HELD
        assert load(tier, 0, range(20, 28))


def test_a_server_that_hangs(server: LMCacheServer, tier: Both) -> None:
    assert store(tier)
    assert tier.found("held", prompt(), SALT) == HELD
    server.signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        swift(lambda: tier.lookup.start(TierKey("late", prompt(), SALT)))
        tier.lookup.keep("held", 0, HELD)
        swift(lambda: tier.copy.load(tier.op("held", prompt(), SALT, range(20, 28))))
        swift(lambda: tier.copy.store(tier.op("new", prompt(9), SALT, range(8))))
        assert until(lambda: tier.lookup.poll("late") == 0, seconds=1)
        assert time.monotonic() - begun < 0.25 + BLOCKING_SECONDS
        results = tier.await_results(2, seconds=1.5)
        assert [r.ok for r in results] == [False, False]
        assert until(lambda: tier.copy.status() == "down", seconds=1)
        swift(lambda: tier.lookup.start(TierKey("later", prompt(), SALT)))
        assert tier.lookup.poll("later") == 0
        for request in ("held", "late", "later"):
            swift(partial(tier.lookup.end, request))
    finally:
        server.signal(signal.SIGCONT)
    assert tier.ready(seconds=5)
    assert tier.unlocked(seconds=server.write_ttl + 5)
    assert load(tier, 0, range(40, 48))
    assert same(bits(tier.caches, range(8)), bits(tier.caches, range(40, 48)))


def test_a_withdrawal_while_the_server_hangs(server: LMCacheServer, tier: Both) -> None:
    """The copy that was about to begin never does, not even when the server wakes up."""
    server.signal(signal.SIGSTOP)
    try:
        tier.copy.store(tier.op("gone", prompt(3), SALT, range(8)))
        time.sleep(0.05)
        swift(lambda: tier.copy.withdraw("gone"))
        (result,) = tier.await_results(1, seconds=0)
        assert (result.ok, result.reason) == (False, "withdrawn")
    finally:
        server.signal(signal.SIGCONT)
    assert tier.ready(seconds=5)
    assert tier.unlocked(seconds=server.write_ttl + 5)
    assert tier.found("reader", prompt(3), SALT) == 0
    assert tier.copy.drain() == []


def test_closing_while_the_server_hangs(server: LMCacheServer) -> None:
    dram = Dram(chunk_tokens=CHUNK, port=server.port, operation_seconds=60.0)
    tier = over_lmcache(dram, server.locks)
    assert tier.ready()
    server.signal(signal.SIGSTOP)
    try:
        tier.copy.store(tier.op("gone", prompt(4), SALT, range(8)))
        time.sleep(0.05)
        begun = time.monotonic()
        tier.close()
        assert time.monotonic() - begun < 3
        assert [r.ok for r in tier.copy.drain()] == [False]
    finally:
        server.signal(signal.SIGCONT)


def test_pages_may_be_reused_as_soon_as_a_withdrawal_returns(tier: Both) -> None:
    choose = random.Random(5)
    expected = {}
    for seed in range(100, 160):
        for cache in tier.caches.values():
            cache[:8] = seed
        expected[seed] = bits(tier.caches, range(8))
        tier.copy.store(tier.op(f"writer-{seed}", prompt(seed), SALT, range(8)))
        until(lambda: False, choose.random() * 0.006)
        tier.copy.withdraw(f"writer-{seed}")
        for cache in tier.caches.values():
            cache[:8] = -1.0
    results = tier.await_results(60)
    assert len({r.op_id for r in results}) == 60
    held = [seed for seed in expected if tier.found(f"r{seed}", prompt(seed), SALT) == HELD]
    assert len(held) >= sum(r.ok for r in results) > 0
    for seed in held:
        tier.lookup.keep(f"r{seed}", 0, HELD)
        tier.copy.load(tier.op(f"r{seed}", prompt(seed), SALT, range(30, 38)))
        assert tier.await_results(1)[0].ok
        assert same(expected[seed], bits(tier.caches, range(30, 38)))
        tier.lookup.end(f"r{seed}")
    assert tier.unlocked()


def test_old_chunks_make_room_for_new_ones(server: LMCacheServer) -> None:
    """Nothing stays locked: four times what the server can hold goes in, the newest stays."""
    with tier_over(server, blocks=640) as tier:
        assert tier.ready()
        chunk_bytes = sum(cache[:2].nbytes for cache in tier.caches.values())
        rounds = int(4 * server.gib * 2**30 / (320 * chunk_bytes)) + 1
        for seed in range(rounds):
            tokens = [seed, *range(320 * CHUNK)]
            for start in range(0, 320 * CHUNK, 32 * CHUNK):
                blocks = range(start // 32, start // 32 + 64)
                tier.copy.store(tier.op("writer", tokens, SALT, blocks, start=start))
            results = tier.await_results(10)
            assert all(r.ok for r in results)
            assert tier.found(f"old-{seed}", tokens, SALT) >= 0
            tier.lookup.end(f"old-{seed}")
        assert tier.unlocked()
        assert store_and_load(tier, 77)


def store_and_load(tier: Both, seed: int) -> bool:
    return store(tier, seed) and load(tier, seed, range(20, 28))


def test_bytes_that_have_changed_in_memory_are_never_used(
    server: LMCacheServer, tier: Both
) -> None:
    assert store_and_load(tier, 7)
    (path,) = Path("/dev/shm").glob(f"*{server.name}*")
    segment = np.memmap(path, dtype=np.uint8, mode="r+")
    page = bits(tier.caches, [5])[2].numpy().view(np.uint8).reshape(-1)
    needle = page[:64].tobytes()
    at = segment.tobytes().find(needle)
    assert at >= 0
    segment[at] ^= 1
    assert not load(tier, 7, range(20, 28))
    assert tier.unlocked()
    assert tier.found("again", prompt(7), SALT) == 0
    assert store_and_load(tier, 7)


def test_what_is_overwritten_under_its_reader_costs_nobody_else_the_tier(
    server: LMCacheServer, tier: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a flush does: that is no reason to clear all of it."""
    cleared: list[Registration] = []
    monkeypatch.setattr(Registration, "clear", cleared.append)
    assert store(tier, 8)
    assert tier.found("reader", prompt(8), SALT) == HELD
    tier.lookup.keep("reader", 0, HELD)
    (path,) = Path("/dev/shm").glob(f"*{server.name}*")
    np.memmap(path, dtype=np.uint8, mode="r+")[:] = 0
    tier.copy.load(tier.op("reader", prompt(8), SALT, range(20, 28)))
    (result,) = tier.await_results(1)
    assert (result.ok, result.reason, cleared) == (False, "overwritten", [])
    tier.lookup.end("reader")
    assert tier.unlocked()
    server.clear()


def test_a_reservation_that_was_never_filled_is_never_used(server: LMCacheServer) -> None:
    """LMCache would publish it when its worker signs off or dies; the seal is not there."""
    with tier_over(server, namespace="unfilled") as tier:
        assert tier.ready()
        link = Link(server.port)
        chunk_bytes = sum(cache[:2].nbytes for cache in tier.caches.values())
        naming = Naming("unfilled", 1)
        place = Registration(link, naming, 0, chunk_bytes)
        place.open(32, 2.0)
        key = naming.key(tuple(prompt()), SALT, (0, HELD), place.session(), 0)
        slots = place.reserve(key, 2.0)
        assert [at for at, _ in slots] == [0, 1, 2, 3]
        assert place.leftover() is None
        instance = place._instance
        place.sign_off(instance, 2.0)
        link.close()
        assert tier.found("reader", prompt(), SALT) == 0
        tier.lookup.end("reader")
        assert tier.unlocked()
        assert store(tier)
        assert load(tier, 0, range(20, 28))


def test_a_reservation_that_is_withdrawn_comes_back_at_once(
    server: LMCacheServer, tier: Both
) -> None:
    server.signal(signal.SIGSTOP)
    tier.copy.store(tier.op("gone", prompt(33), SALT, range(8)))
    time.sleep(0.05)
    tier.copy.withdraw("gone")
    server.signal(signal.SIGCONT)
    assert [r.reason for r in tier.await_results(1)] == ["withdrawn"]
    assert tier.unlocked(seconds=server.write_ttl - 1.5)


def test_what_makes_no_sense_fails_and_the_tier_stays_up(tier: Both) -> None:
    tokens = prompt()
    nonsense = [
        tier.op("x", tokens, SALT, range(8), start=32),
        tier.op("x", tokens, SALT, range(7)),
        tier.op("x", tokens[:200], SALT, range(8)),
        tier.op("x", tokens, SALT, range(60, 68)),
        tier.op("x", tokens, SALT, range(-1, 7)),
        tier.op("x", tokens, "a/b", range(8)),
        tier.op("x", tokens, once_of("alice"), range(8)),
        tier.op("x", tokens, SALT, []),
        tier.op("x", tokens, SALT, range(8), skip=9),
    ]
    for op in nonsense:
        tier.copy.store(op)
        tier.copy.load(op)
    assert not any(r.ok for r in tier.await_results(2 * len(nonsense)))
    assert tier.found("x", tokens, "a/b") == 0
    assert tier.copy.status() == "up"
    assert store(tier)


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        (LMCacheServer(chunk_tokens=CHUNK, shared=False), "no shared memory"),
        (LMCacheServer(chunk_tokens=128), "chunks of 128 tokens, not 64"),
    ],
    ids=["pickle", "other-chunks"],
)
def test_a_server_we_cannot_use(
    server: LMCacheServer, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(server), caplog.at_level(logging.WARNING), tier_over(server) as tier:
        # Lookups and copies each find out for themselves; "down:" is what the copying part says.
        assert until(
            lambda: any(
                r.message.startswith("DRAM tier down: ") and complaint in r.message
                for r in caplog.records
            )
        )
        assert tier.copy.status() == "down"
        tier.copy.store(tier.op("writer", prompt(), SALT, range(8)))
        (result,) = tier.await_results(1, seconds=0.1)
        assert complaint in (result.reason or "")


def engine_config(**changes: object) -> SimpleNamespace:
    facts: dict[str, object] = {
        "revision": None,
        "dtype": "float32",
        "cache_dtype": "auto",
        "block_size": 32,
    }
    facts |= {"hf": "{}"} | changes
    model = SimpleNamespace(
        revision=facts["revision"],
        dtype=facts["dtype"],
        hf_config=SimpleNamespace(to_json_string=lambda: facts["hf"]),
    )
    cache = SimpleNamespace(cache_dtype=facts["cache_dtype"], block_size=facts["block_size"])
    return SimpleNamespace(model_config=model, cache_config=cache)


def test_the_name_given_to_lmcache_holds_what_its_key_lacks() -> None:
    changes: list[dict[str, object]] = [
        {"revision": "v2"},
        {"dtype": "bfloat16"},
        {"cache_dtype": "fp8"},
    ]
    changes += [{"block_size": 64}, {"hf": '{"layers": 2}'}]
    names = {namespace("model", engine_config(**change)) for change in [{}, *changes]}
    names |= {namespace("model@2", engine_config())}
    assert len(names) == len(changes) + 2
    assert all("@" not in name for name in names)
    assert namespace("model", engine_config()) == namespace("model", engine_config())


def test_chunks_must_be_whole_blocks() -> None:
    with pytest.raises(ConfigError, match="must be a multiple of the engine's block size"):
        over_lmcache(Dram(chunk_tokens=BLOCK_SIZE + 1), lambda: (0, 0))
