"""Prompts of adapters wait in one queue with all others, and go only to who serves theirs."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest

from kvstore.curves import PrefillCurve
from kvstore.index import Directory
from kvstore.messages import ServedAdapter
from proxy import hints
from proxy.pace import Pace
from proxy.prompts import Layout, Prompt, Waiting
from proxy.scheduler import Scheduler
from proxy.turns import Turns
from proxy.workload import Given
from tests.support.announcing import announce
from tests.support.proxy_fakes import NoPeers

OLD, NEW = (ServedAdapter("poet", revision * 16, "/poet") for revision in "ab")
LAYOUT = Layout.of(announce())
TOKENS = 1000
"""Takes a worker a second."""


def directory(**workers: ServedAdapter | None) -> Directory:
    known = Directory(lease_seconds=1e9)
    for name, adapter in workers.items():
        serving(known, name, adapter)
    return known


def serving(known: Directory, name: str, adapter: ServedAdapter | None) -> None:
    adapters = () if adapter is None else (adapter,)
    known.apply(msgspec.structs.replace(announce(name), adapters=adapters), 0.0)


def scheduler(known: Directory) -> Scheduler:
    return Scheduler(known, LAYOUT, Pace(PrefillCurve(0.0, 0.001, 0.0)))


def prompt(adapter: ServedAdapter | None = None, hint: int | None = None) -> Prompt:
    return Prompt("t", TOKENS, [], hint, adapter)


def given(scheduled: list[tuple[Waiting, Given]]) -> list[str]:
    return [one.worker.worker for _, one in scheduled]


def test_it_goes_to_who_serves_it_whatever_is_free_besides() -> None:
    queue = scheduler(directory(a=OLD, b=NEW))
    queue.enter(prompt(NEW), 0.0)
    queue.enter(prompt(NEW), 0.0)
    queue.enter(prompt(), 0.0)
    assert given(queue.decide(0.0)) == ["b", "a"]
    assert given(queue.decide(0.5)) == []
    assert given(queue.decide(1.0)) == ["b"]


def test_one_that_nobody_can_compute_holds_nobody_up() -> None:
    queue = scheduler(directory(a=OLD))
    stranded = queue.enter(prompt(NEW), 0.0)
    served = queue.enter(prompt(OLD), 0.0)
    assert [one for one, _ in queue.decide(0.0)] == [served]
    assert queue.dismiss(0.0) == [stranded]
    assert queue.dismiss(0.0) == []
    assert queue.expected(prompt(NEW), 0.0) is None
    assert queue.candidates(prompt(NEW), 0.0) == []
    assert queue.expected(prompt(OLD), 0.0) is not None


def test_candidates_are_those_that_serve_it() -> None:
    queue = scheduler(directory(a=OLD, b=NEW, c=NEW))
    found = queue.candidates(prompt(NEW), 0.0)
    assert [one.worker.worker for one in found] == ["b", "c"]
    assert all(math.isfinite(one.costs) for one in found)
    assert len(queue.candidates(prompt(), 0.0)) == 3


def test_a_hint_leads_to_nobody_who_does_not_serve_it() -> None:
    known = hints.numbers(["a", "b"])
    hint = next(at for at in range(99) if hints.meant(at, known) == 0)
    queue = scheduler(directory(a=OLD, b=NEW))
    queue.enter(prompt(NEW, hint), 0.0)
    assert given(queue.decide(0.0)) == ["b"]
    (only,) = queue.candidates(prompt(NEW, hint), 0.0)
    assert only.worker.worker == "b"
    assert math.isfinite(only.costs)


def test_it_is_looked_up_anew_who_serves_it() -> None:
    known = directory(a=OLD)
    queue = scheduler(known)
    queue.enter(prompt(OLD), 0.0)
    assert given(queue.decide(0.0)) == ["a"]
    queue.enter(prompt(OLD), 0.0)
    queue.enter(prompt(NEW), 0.0)
    serving(known, "b", NEW)
    assert given(queue.decide(0.0)) == ["b"]


@pytest.mark.parametrize("left", [NEW, None])
def test_who_waits_for_a_worker_that_left_is_told(left: ServedAdapter | None) -> None:
    async def scenario() -> None:
        known = directory(a=OLD, b=NEW)
        turns = Turns(known, NoPeers(), 9, lambda: 0.0)

        async def take(adapter: ServedAdapter) -> Given | None:
            return await turns.take(LAYOUT, prompt(adapter), 1e9)

        first = await take(OLD)
        assert first is not None
        waits = [asyncio.create_task(take(OLD)), asyncio.create_task(take(OLD))]
        await asyncio.sleep(0)
        assert len(turns) == 2
        serving(known, "a", left)
        turns.look()
        async with asyncio.timeout(5):
            assert await asyncio.gather(*waits) == [None, None]
        assert not len(turns)

    asyncio.run(scenario())
