"""A load from as many processes as it needs, begun at one moment and gathered in one place."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec

from bench.driving import frames
from bench.driving.target import Target
from bench.errors import BenchError
from bench.load.schedule import Schedule
from bench.records import Record

PREPARE_SECONDS = 120.0
HEAD_START_SECONDS = 0.3
"""From the word to begin until the first request: longer than any child takes to hear it."""

STOP_SECONDS = 5.0

Watch = Callable[[Sequence[Record], int, int], None]
"""Told new records, how many requests have been sent so far and how many are under way."""


class LoadFailed(BenchError):
    """The load could not be put on; the message is one line."""


class Fleet:
    """Child processes that send loads, one load after the other.

    ``stopped``: why a load ended before its time; empty if none did since ``resume``. A stopped
    fleet sends nothing more. ``lateness``: seconds by which the children's event loops were late
    during the last load, several samples a second.
    """

    def __init__(self, processes: int = 1) -> None:
        self._count = processes
        self._children: list[asyncio.subprocess.Process] = []
        self._stack = AsyncExitStack()
        self.stopped = ""
        self.lateness: list[float] = []
        self._counts: dict[int, tuple[int, int]] = {}

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.driving.child"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 22,
            )
            self._children.append(child)
            self._stack.push_async_callback(_end, child)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def run(
        self, target: Target, schedule: Schedule, salt: str, watch: Watch
    ) -> list[Record]:
        """Puts ``schedule`` on ``target``; all records, by number.

        Stopped, or left by a child that died, it returns what there is. Raises LoadFailed where
        the load could not even begin.
        """
        if self.stopped:
            return []
        await self._prepare(target, schedule, salt)
        begin = time.monotonic() + HEAD_START_SECONDS
        for child in self._children:
            await _say(child, frames.Begin(begin))
        self._repeat_stop()
        records: list[Record] = []
        self._counts.clear()
        self.lateness.clear()
        gathering = asyncio.gather(
            *(self._gather(number, records, watch) for number in range(len(self._children)))
        )
        try:
            await asyncio.shield(gathering)
        except asyncio.CancelledError:
            self._signal()
            await asyncio.wait({gathering}, timeout=STOP_SECONDS)
            raise
        return sorted(records, key=lambda record: record.number)

    def stop(self, why: str = "it was stopped before its end") -> None:
        """Ends the running load; ``run`` then returns what there is."""
        self.stopped = self.stopped or why
        self._signal()

    def resume(self) -> None:
        """What was stopped is over; loads may be put on again."""
        self.stopped = ""

    def _repeat_stop(self) -> None:
        """A child may have heard the signal before this load was its own."""
        if self.stopped:
            self._signal()

    def _signal(self) -> None:
        for child in self._children:
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)

    async def _prepare(self, target: Target, schedule: Schedule, salt: str) -> None:
        shares = shared_out(schedule, len(self._children))
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                for child, share in zip(self._children, shares, strict=True):
                    await _say(child, frames.Job(target, share, salt))
                for child in self._children:
                    await _expect(child, frames.Prepared)
        except TimeoutError:
            raise LoadFailed(f"no load was prepared within {PREPARE_SECONDS:.0f} s") from None

    async def _gather(self, number: int, records: list[Record], watch: Watch) -> None:
        child = self._children[number]
        while True:
            try:
                message = await _heard(child)
            except LoadFailed as death:
                self.stop(str(death))  # the others' records, and its own so far, are not lost
                return
            if isinstance(message, frames.Done):
                return
            if isinstance(message, frames.Progress):
                records += message.records
                if message.late is not None:
                    self.lateness.append(message.late)
                self._counts[number] = (message.sent, message.in_flight)
                sent, in_flight = map(sum, zip(*self._counts.values(), strict=True))
                watch(message.records, sent, in_flight)


def shared_out(schedule: Schedule, count: int) -> list[Schedule]:
    """``schedule`` in ``count`` shares: whole conversations, dealt in turn; where there are users,
    each user's go where that user is."""
    if count == 1:
        return [schedule]
    users = schedule.in_flight or count
    places = {
        conversation: place % users % count
        for place, conversation in enumerate(
            dict.fromkeys(planned.conversation for planned in schedule.requests)
        )
    }
    return [
        msgspec.structs.replace(
            schedule,
            before=(),
            requests=tuple(p for p in schedule.requests if places[p.conversation] == share),
            in_flight=len(range(share, schedule.in_flight, count)),
        )
        for share in range(count)
    ]


async def _say(child: asyncio.subprocess.Process, message: frames.ToChild) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(frames.encode(message))
        await child.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        raise LoadFailed("a load process ended before its time") from None


async def _heard(child: asyncio.subprocess.Process) -> frames.FromChild:
    assert child.stdout is not None
    try:
        return await frames.from_child(child.stdout)
    except asyncio.IncompleteReadError:
        raise LoadFailed("a load process ended before its time") from None


async def _expect(child: asyncio.subprocess.Process, kind: type[frames.FromChild]) -> None:
    message = await _heard(child)
    if not isinstance(message, kind):
        raise LoadFailed(f"a load process said {type(message).__name__} out of turn")


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.stdin is not None:
        child.stdin.close()
    try:
        await asyncio.wait_for(child.wait(), STOP_SECONDS)
    except TimeoutError:
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
