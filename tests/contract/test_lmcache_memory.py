"""What we lean on in the installed LMCache's L1, and that whatever it frees is overwritten."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lmcache.v1.distributed.l1_manager import L1Manager

from kvstore.lmcache_memory import L1Memory
from kvstore.lmcache_tenants import LMCacheTenants
from tests.support.l1_memory import L1, OBJECT, TAKES, WRITER, key, keys, layout
from tests.support.salted import salt_of

SALT = salt_of("alice")
PATTERN = 0xA5


@pytest.fixture
def l1() -> Iterator[L1]:
    l1 = L1(objects=16, write_ttl=1)
    yield l1
    l1.close()


@pytest.mark.parametrize(
    "name", ["reserve_read", "unsafe_read", "reserve_write", "finish_write", "clear"]
)
def test_what_stands_in_the_place_of_a_method_is_called_as_it_is(name: str) -> None:
    theirs = inspect.signature(inspect.unwrap(_inner(getattr(L1Manager, name))))
    ours = inspect.signature(getattr(LMCacheTenants, name))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]


def _inner(method: Any) -> Any:
    """LMCache's lock decorator does not say what it wraps."""
    cells = method.__closure__ or ()
    return next((c.cell_contents for c in cells if callable(c.cell_contents)), method)


def evict(l1: L1) -> None:
    l1.store(SALT, range(4), PATTERN)
    l1.manager.delete(keys(SALT, range(4)))


def force(l1: L1) -> None:
    l1.store(SALT, range(4), PATTERN)
    l1.lock(SALT, range(4))
    l1.manager.delete(keys(SALT, range(4)), force=True)


def clear(l1: L1) -> None:
    l1.store(SALT, range(4), PATTERN)
    l1.manager.clear()


def clear_by_force(l1: L1) -> None:
    l1.store(SALT, range(2), PATTERN)
    l1.lock(SALT, range(2))
    l1.fill(l1.reserve(SALT, range(2, 4)).values(), PATTERN)
    l1.manager.clear(force=True)


def theirs_by_force(l1: L1) -> None:
    l1.store(SALT, range(2), PATTERN)
    l1.fill(l1.reserve(SALT, range(2, 4)).values(), PATTERN)
    L1Manager.clear(l1.manager, force=True)


def discard(l1: L1) -> None:
    """Two writers of one object: what the later one wrote is dropped."""
    l1.fill(l1.reserve(SALT, range(4)).values(), PATTERN)
    other = l1.tenants._reserve_write(keys(SALT, range(4)), [False] * 4, layout(), "other")
    l1.fill([found for _, found in other.values()], 9)
    l1.commit(SALT, range(4))
    l1.manager.finish_write(keys(SALT, range(4)), tag="other")
    assert l1.patterned(9) == 0
    l1.manager.delete(keys(SALT, range(4)))


def give_up(l1: L1) -> None:
    l1.fill(l1.reserve(SALT, range(4)).values(), PATTERN)
    l1.manager.finish_write_and_delete(keys(SALT, range(4)), tag=WRITER)


def read_once(l1: L1) -> None:
    got = l1.manager.reserve_write(keys(SALT, range(4)), [True] * 4, layout(), WRITER)
    l1.fill([found for _, found in got.values()], PATTERN)
    l1.commit(SALT, range(4))
    l1.lock(SALT, range(4))
    l1.unlock(SALT, range(4))


def lose(l1: L1) -> None:
    """Memory nobody has a name for any more."""
    _, objects = l1.manager._memory_manager.allocate(layout(), 4)
    l1.fill(objects, PATTERN)
    del objects
    gc.collect()


@pytest.mark.parametrize(
    "way",
    [evict, force, clear, clear_by_force, theirs_by_force, discard, give_up, read_once, lose],
    ids=lambda way: way.__name__,
)
def test_whatever_is_freed_is_overwritten(l1: L1, way: Callable[[L1], None]) -> None:
    neighbour = l1.store(salt_of("bob"), range(20, 22), 0x11)
    way(l1)
    assert l1.patterned(PATTERN) == 0
    assert l1.free_is_blank()
    if l1.held(salt_of("bob"), neighbour):
        assert l1.patterned(0x11) == 2 * OBJECT


def test_closing_overwrites_before_the_memory_is_given_back(l1: L1) -> None:
    l1.store(SALT, range(4), PATTERN)
    lost = l1.manager._memory_manager.allocate(layout(), 1)
    l1.manager.close()
    assert l1.patterned(PATTERN) == 0
    assert not (Path("/dev/shm") / l1.name).exists()
    del lost  # frees memory that is not there any more
    gc.collect()


def test_what_is_aligned_away_is_overwritten_too(l1: L1) -> None:
    (found,) = l1.reserve(SALT, [1]).values()
    assert (found.get_size(), found.get_physical_size()) == (OBJECT, TAKES)
    l1.segment[found.shm_offset :][:TAKES] = PATTERN
    l1.commit(SALT, [1])
    l1.manager.delete([key(SALT, 1)])
    assert not l1.segment.any()


def test_the_memory_is_seen_as_it_is(l1: L1) -> None:
    memory = L1Memory(l1.manager)
    assert (memory.capacity, memory.free) == (16 * TAKES, 16 * TAKES)
    assert memory.size_of(layout()) == TAKES
    assert memory.write_seconds == 1
    l1.store(SALT, range(3), PATTERN)
    reserved = l1.reserve(SALT, [3])
    assert memory.free == 12 * TAKES
    assert set(memory.keys()) == set(keys(SALT, range(4)))
    assert [memory.holds(key(SALT, n)) for n in (0, 3, 4)] == [True, True, False]
    assert memory.is_blank(key(SALT, 3), WRITER)
    assert not memory.is_blank(key(SALT, 4), WRITER)
    l1.fill(reserved.values(), PATTERN)
    assert not memory.is_blank(key(SALT, 3), WRITER)
    memory.overwrite(keys(SALT, [0, 3, 9]))
    assert l1.patterned(PATTERN) == 2 * OBJECT
    assert l1.held(SALT, range(4)) == [0, 1, 2]
