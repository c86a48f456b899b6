"""Requests wait in the loop for their turn, and none is forgotten; time passes by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from kvstore.curves import Sample
from kvstore.errors import ApiError
from kvstore.index import Directory
from kvstore.messages import Engaged
from proxy.pace import UNMEASURED
from proxy.prompts import Layout, Prompt
from proxy.turns import LOOK_SECONDS, Turns
from proxy.workload import Given
from tests.support.announcing import announce
from tests.support.proxy_fakes import NoPeers

LAYOUT = Layout.of(announce())
SECOND = Prompt("a", 19_800, [])
"""Takes a worker one second, as far as anybody knows."""

FAR = 1e9


class Scene:
    """Turns on a loop whose time is a number."""

    def __init__(self, *workers: str, tenant_waiting: int = 9) -> None:
        self.now = 0.0
        self.directory = Directory(lease_seconds=1e12)
        self.peers = NoPeers()
        self.turns = Turns(self.directory, self.peers, tenant_waiting, lambda: self.now)
        for worker in workers:
            self.directory.apply(announce(worker), 0.0)

    def come(self, prompt: Prompt = SECOND) -> asyncio.Task[Given | None]:
        return asyncio.create_task(self.turns.take(LAYOUT, prompt, FAR))

    async def passes(self, seconds: float) -> None:
        """Timers fire by the loop's own time, which a test makes jump."""
        loop = asyncio.get_running_loop()
        end = self.now + seconds
        while self.now < end - 1e-9:
            step = min(0.05, end - self.now)
            self.now += step
            loop.skipped += step  # type: ignore[attr-defined]
            await settled()


class _Loop(asyncio.SelectorEventLoop):
    """Its time stands still but for what a test skips."""

    skipped = 0.0

    def time(self) -> float:
        return self.skipped


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:

        async def whole() -> None:
            await scenario()

        runner.run(whole())


def test_a_second_one_waits_until_the_first_is_nearly_done() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        first, second = scene.come(), scene.come()
        await settled()
        assert first.done()
        assert not second.done()
        assert len(scene.turns) == 1
        await scene.passes(0.9)
        assert not second.done()
        await scene.passes(0.1)
        assert second.done()
        assert len(scene.turns) == 0

    run(scenario)


def test_who_ends_early_makes_room_at_once() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        first, second = scene.come(), scene.come()
        await settled()
        given = first.result()
        assert given is not None
        scene.turns.ended(given, computed=True)
        await settled()
        assert second.done()

    run(scenario)


def test_one_that_leaves_while_it_waits_is_not_served() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        first, second, third = scene.come(), scene.come(), scene.come()
        await settled()
        second.cancel()
        await settled()
        given = first.result()
        assert given is not None
        scene.turns.ended(given, computed=True)
        await settled()
        assert third.done()
        assert len(scene.turns) == 0

    run(scenario)


def test_one_that_leaves_in_the_moment_of_its_turn_gives_it_back() -> None:
    """Cancelled and given in the same turn of the loop, in either order."""

    async def scenario(cancel_first: bool) -> None:
        scene = Scene("w0")
        first, second, third = scene.come(), scene.come(), scene.come()
        await settled()
        given = first.result()
        assert given is not None
        if cancel_first:
            second.cancel()
        scene.turns.ended(given, computed=True)
        second.cancel()
        await settled()
        assert second.cancelled()
        assert third.done()

    run(lambda: scenario(True))
    run(lambda: scenario(False))


def test_workers_that_come_are_noticed_unasked() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        first, second = scene.come(), scene.come()
        await settled()
        scene.directory.apply(announce("w1"), 0.0)
        await scene.passes(LOOK_SECONDS + 0.05)
        assert second.done()
        given = first.result(), second.result()
        assert [one.worker.worker for one in given if one] == ["w0", "w1"]

    run(scenario)


@pytest.mark.parametrize("how", ["lost", "draining"])
def test_where_the_last_worker_goes_all_that_wait_are_told(how: str) -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        scene.come()
        second, third = scene.come(), scene.come()
        await settled()
        third.cancel()
        if how == "lost":
            scene.directory.expire(1e13)
        else:
            scene.directory.apply(msgspec.structs.replace(announce("w0"), state="draining"), 0.0)
        await scene.passes(LOOK_SECONDS + 0.05)
        assert second.done()
        assert second.result() is None
        assert len(scene.turns) == 0
        assert await scene.come() is None

    run(scenario)


def test_a_tenant_with_too_many_is_told_when_to_come_again() -> None:
    async def scenario() -> None:
        scene = Scene("w0", tenant_waiting=2)
        waiting = [scene.come() for _ in range(3)]
        await settled()
        with pytest.raises(ApiError) as refused:
            await scene.come()
        assert refused.value.status == 503
        assert refused.value.retry_after == 3
        other = scene.come(Prompt("b", 19_800, []))
        await settled()
        assert not other.done()  # it waits
        for one in [*waiting, other]:
            one.cancel()

    run(scenario)


def test_who_could_not_be_served_in_time_is_told_at_once() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        waiting = [scene.come() for _ in range(3)]
        await settled()
        with pytest.raises(ApiError) as refused:
            await scene.turns.take(LAYOUT, SECOND, until=1.5)
        assert refused.value.retry_after == 2
        in_time = asyncio.create_task(scene.turns.take(LAYOUT, SECOND, until=3.5))
        await settled()
        assert not in_time.done()
        for one in [*waiting, in_time]:
            one.cancel()

    run(scenario)


def test_what_workers_took_is_what_others_have_to_expect() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        for _ in range(20):
            given = await scene.come()
            assert given is not None
            scene.turns.ended(given, computed=True, took=Sample(19_800, 0, 10.0))
        expected = scene.turns.expected(LAYOUT, SECOND)
        assert expected is not None
        assert expected.seconds == pytest.approx(10.0, rel=0.05)
        slower = UNMEASURED.seconds(100.0, 0.0) * 10.0
        assert expected.curve.seconds(100.0, 0.0) == pytest.approx(slower, rel=0.2)

    run(scenario)


def test_other_proxies_are_told_what_a_worker_has() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        given = await scene.come()
        assert given is not None
        assert scene.peers.told == [("w0", 1, 1.0)]
        scene.turns.ended(given, computed=True)
        assert scene.peers.told[1:] == [("w0", 0, 0.0)]

    run(scenario)


def test_a_worker_that_fails_is_left_alone_for_longer_and_longer() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        for pause in (2.0, 4.0, 8.0):
            given = await scene.come()
            assert given is not None
            scene.turns.failed(given)
            await scene.passes(pause - 0.1)
            assert await scene.come() is None
            await scene.passes(0.15)
        given = await scene.come()
        assert given is not None
        scene.turns.ended(given, computed=True)
        again = await scene.come()
        assert again is not None
        scene.turns.failed(again)
        await scene.passes(2.05)
        assert await scene.come() is not None

    run(scenario)


def test_others_are_given_what_a_failing_worker_does_not_do() -> None:
    async def scenario() -> None:
        scene = Scene("w0", "w1")
        chosen = []
        for _ in range(6):
            given = await scene.come()
            assert given is not None
            chosen.append(given.worker.worker)
            if given.worker.worker == "w0":
                scene.turns.failed(given)
            else:
                scene.turns.ended(given, computed=True)
        assert chosen.count("w0") <= 1

    run(scenario)


def test_a_worker_that_another_proxy_has_busy_has_no_room() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        scene.peers.engagements.apply(Engaged("w0", "g0", "other", 1, 1.0), 0.0)
        waiting = scene.come()
        await scene.passes(0.5)
        assert not waiting.done()
        scene.peers.engagements.apply(Engaged("w0", "g0", "other", 0, 0.0), scene.now)
        scene.turns.look()
        await settled()
        assert waiting.done()

    run(scenario)


def test_a_worker_that_another_proxy_is_soon_done_with_is_thought_of_in_time() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        scene.peers.engagements.apply(Engaged("w0", "g0", "other", 1, 0.1), 0.0)
        waiting = scene.come()
        await scene.passes(0.1)
        assert waiting.done()

    run(scenario)


def test_layouts_that_nobody_has_any_more_are_forgotten() -> None:
    async def scenario() -> None:
        scene = Scene("w0")
        given = await scene.come()
        assert given is not None
        scene.turns.ended(given, computed=True)
        for number in range(50):
            other = msgspec.structs.replace(announce("w0"), fingerprint=f"f{number}")
            scene.directory.apply(other, 0.0)
            one = await scene.turns.take(Layout.of(other), SECOND, FAR)
            assert one is not None
            scene.turns.ended(one, computed=True)
        assert len(scene.turns._queues) <= 2
        assert len(scene.turns._paces) <= 3

    run(scenario)


def test_a_queue_and_who_foretells_have_one_pace() -> None:
    """Also where a worker is gone for a while and another layout comes meanwhile."""

    async def scenario() -> None:
        scene = Scene("w0")
        given = await scene.come()
        assert given is not None
        other = msgspec.structs.replace(announce("w0"), fingerprint="other")
        scene.directory.apply(other, 0.0)
        scene.turns.pace(Layout.of(other))
        scene.directory.apply(announce("w0"), 0.0)
        for _ in range(5):
            scene.turns.ended(given, computed=True, took=Sample(1000, 0, 5.0))
        assert scene.turns.pace(LAYOUT).prefill.curve.seconds(1000.0, 0.0) > 1

    run(scenario)
