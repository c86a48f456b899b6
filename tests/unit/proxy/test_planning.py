"""Who serves a request is decided by what is held when it is its turn."""

from __future__ import annotations

import asyncio
import itertools

import msgspec
import pytest

from kvstore.blockhash import block_chain, block_names
from kvstore.cluster import Tenant
from kvstore.index import Directory, Residency
from kvstore.messages import Announce, Snapshot
from proxy import hints
from proxy.catalogue import Served
from proxy.flight import Flight
from proxy.jobs import Call, Job
from proxy.loads import Loads
from proxy.planning import Planner
from proxy.requests import parse
from proxy.steering import DecodeOnly, Disaggregated
from proxy.turns import Turns
from tests.support.announcing import announce
from tests.support.proxy_fakes import NoPeers

SALT = "s"
LONG = list(range(19_800))
"""Takes a worker one second, as far as anybody knows."""


def job(tokens: list[int], hint: int | None = None) -> Job:
    tenant = Tenant(name="t", keys_sha256=())
    request = parse("completions", b'{"prompt": "x"}')
    return Job(
        Call("completions", tenant, b"", "r", 0.0), request, Served("m"), SALT, tokens, None, hint
    )


class Scene:
    """One prefill worker, and decode workers; time passes by hand."""

    def __init__(self, *decode: str) -> None:
        self.now = 0.0
        self._seq = 0
        self.directory = Directory(lease_seconds=1e12)
        self.directory.apply(announce(), 0.0)
        self.decode: dict[str, Announce] = {}
        for worker in decode:
            self.decode[worker] = msgspec.structs.replace(announce(worker), role="decode")
            self.holds(worker, [])
        peers = NoPeers()
        self.loads = Loads(peers)
        self.turns = Turns(self.directory, peers, 9, self.clock)
        self.planner = Planner(self.directory, self.loads, self.turns, self.clock)

    def clock(self) -> float:
        return self.now

    def holds(self, worker: str, tokens: list[int]) -> None:
        self._seq += 1
        known = msgspec.structs.replace(self.decode[worker], seq=self._seq)
        held = b"".join(block_names(block_chain(tokens, known.block_size, SALT)))
        self.directory.apply(known, 0.0)
        self.directory.apply(Snapshot(worker, "g0", self._seq, 0, 1, "gpu", held), 0.0)

    def flight(self) -> Flight:
        return Flight(self.loads, self.clock)


def test_who_decodes_is_chosen_by_what_is_held_when_its_turn_comes() -> None:
    async def scenario() -> None:
        scene = Scene("d0", "d1")
        first = (await scene.planner.plan(job(LONG[::-1]), scene.flight(), 1e9)).plan
        assert isinstance(first, Disaggregated)
        scene.holds("d0", LONG[:640])
        waits = asyncio.create_task(scene.planner.plan(job(LONG), scene.flight(), 1e9))
        await asyncio.sleep(0)
        scene.holds("d0", [])
        scene.holds("d1", LONG[:640])
        scene.now = 1.0
        scene.turns.ended(first.given, computed=True)
        then = (await waits).plan
        assert isinstance(then, Disaggregated)
        assert then.decode.worker == "d1"

    asyncio.run(scenario())


def test_of_an_empty_prompt_nothing_is_foretold_to_be_held() -> None:
    async def scenario() -> None:
        scene = Scene("d0")
        decided = await scene.planner.plan(job([]), scene.flight(), 1e9)
        assert isinstance(decided.plan, DecodeOnly)
        assert decided.predicted is not None
        assert decided.predicted.cached == 0

    asyncio.run(scenario())


def test_what_is_foretold_counts_the_wait_and_who_else_is_there() -> None:
    async def scenario() -> None:
        scene = Scene("d0")
        scene.now = 2.0
        first = (await scene.planner.plan(job(LONG[:640]), scene.flight(), 1e9)).predicted
        assert first is not None
        assert (first.waited, first.busy) == (2.0, False)
        with scene.loads.counted(scene.decode["d0"]):
            second = (await scene.planner.plan(job(LONG[:20]), scene.flight(), 1e9)).predicted
        assert second is not None
        assert second.busy

    asyncio.run(scenario())


@pytest.mark.parametrize("at", [0, 1])
def test_a_hint_decides_who_decodes(at: int) -> None:
    async def scenario() -> None:
        scene = Scene("d0", "d1")
        known = hints.numbers(["d0", "d1"])
        hint = next(one for one in itertools.count() if hints.meant(one, known) == at)
        plan = (await scene.planner.plan(job(LONG, hint), scene.flight(), 1e9)).plan
        assert isinstance(plan, Disaggregated)
        assert plan.decode.worker == f"d{at}"

    asyncio.run(scenario())


def test_decode_workers_that_come_meanwhile_are_looked_up() -> None:
    """However short the wait was: what is known is of others."""

    async def scenario() -> None:
        scene = Scene("d0")
        first = (await scene.planner.plan(job(LONG[::-1]), scene.flight(), 1e9)).plan
        assert isinstance(first, Disaggregated)
        waits = asyncio.create_task(scene.planner.plan(job(LONG), scene.flight(), 1e9))
        await asyncio.sleep(0)
        scene.decode["d1"] = msgspec.structs.replace(announce("d1"), role="decode")
        scene.holds("d1", LONG[:640])
        scene.turns.ended(first.given, computed=True)
        then = (await waits).plan
        assert isinstance(then, Disaggregated)
        assert then.decode.worker == "d1"

    asyncio.run(scenario())


def test_who_is_served_at_once_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        scene = Scene("d0")
        lookups: list[int] = []
        held = scene.directory.held

        def watched(names: list[bytes]) -> Residency:
            lookups.append(len(names))
            return held(names)

        monkeypatch.setattr(scene.directory, "held", watched)
        await scene.planner.plan(job(LONG), scene.flight(), 1e9)
        assert len(lookups) == 1

    asyncio.run(scenario())
