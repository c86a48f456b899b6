"""LMCache's L1 with tenants in it: who gives way to whom, and that a flush leaves nothing."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from kvstore import lmcache_tenants
from kvstore.messages import Standing, Usage
from tests.support.l1_memory import L1, OBJECT, TAKES, WRITER, key, keys
from tests.support.salted import once_of, salt_of, tag_of

ALICE, BOB, LATER = salt_of("alice"), salt_of("bob"), salt_of("alice", 1)
OBJECTS = 32
PATTERN = 0xA5


@pytest.fixture
def l1() -> Iterator[L1]:
    l1 = L1(OBJECTS)
    yield l1
    l1.close()


def share(l1: L1, tenant: str, floor: float = 0.0, limit: float = 1.0, epoch: int = 0) -> None:
    l1.tenants.stand([Standing(tag_of(tenant), epoch, floor, limit)])


def flush(l1: L1, tenant: str, epoch: int) -> None:
    share(l1, tenant, epoch=epoch)


def held(l1: L1) -> dict[str, int]:
    """How many objects' worth of memory each tenant is said to have."""
    usage = l1.tenants.usage()
    assert [part.capacity for part in usage] == [OBJECTS * TAKES] * len(usage)
    return {one.tag: one.kept // TAKES for part in usage for one in part.holdings}


def wiped(l1: L1) -> list[tuple[int, int]]:
    """Epochs and sizes of the flushes of alice that were done in a turn."""
    l1.tenants.turn()
    done = l1.tenants.wiped()
    assert {one.tag for one in done} <= {tag_of("alice")}
    assert all(0 <= one.seconds < 60 for one in done)
    return [(one.epoch, one.size // TAKES) for one in done]


# -- who gives way


def test_who_floods_evicts_its_own(l1: L1) -> None:
    share(l1, "bob", floor=0.25)
    assert l1.store(BOB, range(8)) == [*range(8)]
    for number in range(0, 10 * OBJECTS, 4):
        numbers = range(number, number + 4)
        assert l1.store(ALICE, numbers) == [*numbers]
    assert l1.held(BOB, range(8)) == [*range(8)]
    assert held(l1) == {tag_of("bob"): 8, tag_of("alice"): 24}
    assert l1.held(ALICE, range(10 * OBJECTS)) == [*range(10 * OBJECTS - 24, 10 * OBJECTS)]


def test_a_floor_that_is_not_used_is_there_when_it_is_wanted(l1: L1) -> None:
    share(l1, "bob", floor=0.25)
    l1.store(ALICE, range(OBJECTS))
    for number in range(8):
        assert l1.store(BOB, [number]) == [number]
    assert held(l1) == {tag_of("bob"): 8, tag_of("alice"): 24}
    l1.store(ALICE, range(100, 150))
    assert l1.held(BOB, range(8)) == [*range(8)]


def test_two_who_flood_share_what_is_nobodys(l1: L1) -> None:
    for number in range(4 * OBJECTS):
        l1.store(ALICE if number % 3 else BOB, [number])
    assert held(l1) == {tag_of("bob"): OBJECTS // 2, tag_of("alice"): OBJECTS // 2}


def test_nobody_has_more_than_its_limit(l1: L1) -> None:
    share(l1, "alice", limit=0.25)
    for number in range(0, 40, 5):
        l1.store(ALICE, range(number, number + 5))
        assert held(l1)[tag_of("alice")] <= 8
    assert l1.held(ALICE, range(40)) == [30, 31, 32, *range(35, 40)]  # ends go before beginnings
    # Of what is more than the limit at once, the beginning is kept.
    assert l1.store(ALICE, range(100, 120)) == [*range(100, 108)]
    share(l1, "alice", limit=0.01)
    assert l1.store(ALICE, [200]) == []
    assert l1.store(BOB, range(24)) == [*range(24)]


def test_a_limit_that_is_lowered_holds_soon(l1: L1) -> None:
    l1.store(ALICE, range(20))
    share(l1, "alice", limit=0.25)
    l1.tenants.turn()
    assert l1.held(ALICE, range(20)) == [*range(8)]


def test_what_is_in_use_is_not_taken(l1: L1) -> None:
    share(l1, "alice", limit=0.25)
    l1.store(ALICE, range(8))
    l1.lock(ALICE, range(6))
    reserved = l1.reserve(ALICE, range(10, 18))
    assert list(reserved) == [10, 11]
    assert l1.reserve(ALICE, range(20, 28)) == {}
    l1.commit(ALICE, [10])
    l1.unlock(ALICE, range(6))
    assert list(l1.reserve(ALICE, range(20, 28))) == [*range(20, 27)]


def test_where_all_is_in_use_a_store_is_lost_and_the_next_is_not(l1: L1) -> None:
    share(l1, "bob", floor=0.5)
    l1.store(ALICE, range(OBJECTS))
    l1.lock(ALICE, range(OBJECTS))
    assert l1.store(BOB, [1]) == []
    l1.unlock(ALICE, [5])
    assert l1.store(BOB, [1]) == [1]
    assert l1.held(ALICE, range(OBJECTS)) == [n for n in range(OBJECTS) if n != 5]


def test_what_is_in_use_is_passed_over(l1: L1) -> None:
    l1.store(ALICE, range(OBJECTS))
    assert l1.lock(ALICE, range(12, OBJECTS)) == [*range(12, OBJECTS)]  # the oldest
    assert l1.store(BOB, [1]) == [1]
    assert l1.held(ALICE, range(OBJECTS)) == [n for n in range(OBJECTS) if n != 11]


def test_what_comes_into_use_while_it_is_taken_stays(l1: L1) -> None:
    l1.store(ALICE, range(OBJECTS))
    l1.lock(ALICE, range(OBJECTS))
    evictable, l1.tenants._evictable = l1.tenants._evictable, lambda _key: True
    assert l1.store(BOB, [1]) == []
    assert held(l1) == {tag_of("alice"): OBJECTS}
    l1.tenants._evictable = evictable
    l1.unlock(ALICE, range(OBJECTS))
    assert l1.store(BOB, range(16)) == [*range(16)]
    assert held(l1) == {tag_of("alice"): 16, tag_of("bob"): 16}


def test_memory_in_pieces_is_put_together(l1: L1) -> None:
    l1.store(ALICE, range(OBJECTS))
    l1.manager.touch_keys(keys(ALICE, range(0, OBJECTS, 2)))  # neighbours do not go together
    (found,) = l1.reserve(BOB, [1], size=2 * OBJECT).values()
    assert found.get_size() == 2 * OBJECT


def test_of_a_prompt_the_end_goes_first(l1: L1) -> None:
    l1.store(ALICE, range(16))
    l1.manager.touch_keys(keys(ALICE, range(16)))
    l1.store(BOB, range(16))
    l1.store(BOB, range(16, 20))
    assert l1.held(ALICE, range(16)) == [*range(16)]
    l1.store(salt_of("carol"), range(8))
    assert l1.held(ALICE, range(16)) == [*range(len(l1.held(ALICE, range(16))))]
    assert len(l1.held(ALICE, range(16))) < 16


def test_what_was_not_used_for_longest_goes_first(l1: L1) -> None:
    for number in range(OBJECTS):
        l1.store(ALICE, [number])
    l1.manager.touch_keys(keys(ALICE, [0, 2]))
    l1.store(BOB, [1, 2])
    assert l1.held(ALICE, range(6)) == [0, 2, 4, 5]


def test_some_memory_is_kept_free(l1: L1, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmcache_tenants, "SPARE", 0.25)
    l1.store(ALICE, range(OBJECTS))
    l1.tenants.turn()
    assert l1.held(ALICE, range(OBJECTS)) == [*range(OBJECTS - 8)]


def test_memory_reserved_by_somebody_who_died_comes_back() -> None:
    l1 = L1(OBJECTS, write_ttl=1)
    try:
        l1.fill(l1.reserve(ALICE, range(4)).values(), PATTERN)
        l1.tenants.turn()
        assert held(l1) == {tag_of("alice"): 4}
        later = l1.now
        while l1.manager.is_key_evictable(key(ALICE, 0)) is False:
            pass
        l1.now = lambda: later() + 2
        l1.tenants.turn()
        assert held(l1) == {}
        assert l1.patterned(PATTERN) == 0
    finally:
        l1.close()


# -- what is not kept at all


@pytest.mark.parametrize("salt", ["", "c" * 64, once_of("alice"), "0" * 16])
def test_nothing_is_kept_under_a_salt_that_gives_no_right_to_it(l1: L1, salt: str) -> None:
    assert l1.reserve(salt, range(4)) == {}
    assert l1.tenants.usage() == [Usage("dram", "dram", OBJECTS * TAKES, 0, 1, ())]


def test_what_was_reserved_and_never_filled_is_never_there(l1: L1) -> None:
    reserved = l1.reserve(ALICE, range(4))
    l1.fill([reserved[1]], PATTERN)
    l1.commit(ALICE, range(4))
    assert l1.held(ALICE, range(4)) == [1]
    assert held(l1) == {tag_of("alice"): 1}


# -- epochs


def test_what_is_flushed_is_not_there_any_more(l1: L1) -> None:
    l1.store(ALICE, range(4), PATTERN)
    l1.store(BOB, range(4))
    l1.lock(ALICE, range(2))
    reserved = l1.reserve(ALICE, range(4, 6))
    flush(l1, "alice", 1)
    assert l1.held(ALICE, range(4)) == []
    assert l1.store(ALICE, range(10, 14)) == []
    read = l1.manager.unsafe_read(keys(ALICE, range(2)))
    assert [found for _, found in read.values()] == [None, None]
    l1.fill(reserved.values(), PATTERN)
    l1.commit(ALICE, reserved)
    assert l1.held(BOB, range(4)) == [*range(4)]
    assert l1.store(LATER, range(4), 9) == [*range(4)]
    assert wiped(l1) == [(1, 6)]
    assert wiped(l1) == []
    assert l1.patterned(PATTERN) == 0
    assert l1.held(LATER, range(4)) == [*range(4)]
    assert held(l1) == {tag_of("alice"): 4, tag_of("bob"): 4}


def test_what_is_being_read_is_overwritten_at_once_and_freed_later(l1: L1) -> None:
    l1.store(ALICE, range(8), PATTERN)
    l1.lock(ALICE, range(3))
    flush(l1, "alice", 2)
    assert wiped(l1) == [(2, 8)]
    assert l1.patterned(PATTERN) == 0
    assert set(l1.manager._objects) == set(keys(ALICE, range(3)))
    l1.unlock(ALICE, range(3))
    l1.tenants.turn()
    assert not l1.manager._objects
    assert l1.free_is_blank()


def test_what_is_being_written_counts_when_nobody_writes_any_more(l1: L1) -> None:
    begun = l1.now()
    l1.now = lambda: begun
    reserved = l1.reserve(ALICE, range(2))
    l1.fill(reserved.values(), PATTERN)
    flush(l1, "alice", 1)
    assert wiped(l1) == []
    assert l1.patterned(PATTERN) == 0
    l1.fill(reserved.values(), PATTERN)  # by an engine that has not heard of it
    l1.now = lambda: begun + 1.5
    assert wiped(l1) == [(1, 2)]
    assert l1.patterned(PATTERN) == 0


def test_what_is_committed_late_is_dropped(l1: L1) -> None:
    reserved = l1.reserve(ALICE, range(2))
    flush(l1, "alice", 1)
    assert wiped(l1) == []
    l1.fill(reserved.values(), PATTERN)
    l1.commit(ALICE, reserved)
    assert l1.patterned(PATTERN) == 0
    assert wiped(l1) == [(1, 2)]
    assert not l1.manager._staging


def test_a_flush_of_who_has_nothing_is_done_at_once(l1: L1) -> None:
    l1.store(BOB, range(2))
    flush(l1, "alice", 5)
    assert wiped(l1) == [(5, 0)]
    flush(l1, "alice", 5)
    flush(l1, "alice", 4)
    assert wiped(l1) == []
    assert l1.store(salt_of("alice", 4), [1]) == []
    assert l1.store(salt_of("alice", 5), [1]) == [1]


def test_an_epoch_that_rises_during_a_reservation(l1: L1) -> None:
    """Between the question whether it may be kept and LMCache's answer."""
    ask = l1.tenants._reserve_write

    def meanwhile(*what: Any) -> Any:
        answers = ask(*what)
        flush(l1, "alice", 1)
        return answers

    l1.tenants._reserve_write = meanwhile
    assert list(l1.reserve(ALICE, range(2))) == [0, 1]
    l1.manager.finish_write_and_delete(keys(ALICE, [0]), tag=WRITER)
    assert l1.held(ALICE, range(2)) == []
    l1.tenants.turn()
    l1.commit(ALICE, [1])
    assert not l1.manager._objects
    assert not l1.manager._staging


def test_clearing_leaves_what_is_in_use(l1: L1) -> None:
    l1.store(ALICE, range(8))
    l1.lock(ALICE, [3])
    l1.manager.clear()
    assert l1.held(ALICE, range(8)) == [3]
    assert held(l1) == {tag_of("alice"): 1}
    l1.manager.clear(force=True)
    assert held(l1) == {}


def test_a_turn_that_fails_is_not_the_last_one(
    l1: L1, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lmcache_tenants, "AGAIN_SECONDS", 0.0)
    turn, failed = l1.tenants.turn, threading.Event()

    def once() -> None:
        if failed.is_set():
            return turn()
        failed.set()
        raise RuntimeError("once")

    monkeypatch.setattr(l1.tenants, "turn", once)
    l1.store(ALICE, [1])
    l1.tenants.start()
    assert failed.wait(10)
    flush(l1, "alice", 1)
    until = time.monotonic() + 10
    while not (done := l1.tenants.wiped()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert done[0].epoch == 1
    assert "was not tidied" in caplog.text


def test_all_at_once() -> None:
    """Writers, readers, flushes and the thread that keeps memory free, for two seconds."""
    l1 = L1(OBJECTS)
    l1.tenants.start()
    until, choose = time.monotonic() + 2.0, random.Random(3)
    stores: Counter[str] = Counter()

    def write(tenant: str) -> None:
        number = 0
        while time.monotonic() < until:
            salt = salt_of(tenant, epochs[tenant])
            stores[tenant] += len(l1.store(salt, range(number, number + 4)))
            number = (number + 4) % 100

    def read(tenant: str) -> None:
        while time.monotonic() < until:
            l1.held(salt_of(tenant, epochs[tenant]), range(100))

    def disturb() -> None:
        while time.monotonic() < until:
            epochs["alice"] += choose.randint(0, 1)
            share(l1, "alice", 0.0, choose.random(), epochs["alice"])
            l1.manager.clear()
            time.sleep(0.01)

    epochs = {"alice": 0, "bob": 0}
    work: list[Callable[[], None]] = [
        partial(write, "alice"),
        partial(write, "bob"),
        partial(read, "alice"),
        disturb,
    ]
    try:
        with ThreadPoolExecutor(len(work)) as pool:
            for done in [pool.submit(part) for part in work]:
                done.result(timeout=30)
        flush(l1, "alice", epochs["alice"] + 1)
        l1.tenants.turn()
        assert min(stores["alice"], stores["bob"]) > 20
        assert l1.free_is_blank()
        assert set(held(l1)) <= {tag_of("bob")}
        assert {k.cache_salt for k in l1.manager._objects} <= {BOB}
        assert sum(held(l1).values()) == len(l1.manager._objects)
        assert not l1.manager._staging
    finally:
        l1.close()


def test_the_feed_hears_of_all_of_it(l1: L1) -> None:
    l1.store(ALICE, range(2))
    l1.store(BOB, [0])
    flush(l1, "alice", 1)
    l1.tenants.turn()
    assert l1.heard.changes == [
        ("reserved", keys(ALICE, range(2))),
        ("stored", keys(ALICE, range(2))),
        ("reserved", keys(BOB, [0])),
        ("stored", keys(BOB, [0])),
        ("gone", keys(ALICE, reversed(range(2)))),
    ]
