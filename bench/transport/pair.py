"""The conductor's hold on two processes that move pages between them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

import bench
from bench import processes
from bench.processes import Child
from bench.transport import frames
from bench.transport.case import SIDES, Case, Side
from bench.transport.contender import Contender
from bench.transport.ends.end import MOVE_SECONDS, TransportFailed

_START_SECONDS = 60.0
_ANSWER_SECONDS = MOVE_SECONDS + 15.0
"""Longer than an end waits by itself, so that an end's own words are heard where it has some."""

_CLOSE_SECONDS = 3.0
_POLL_SECONDS = 0.02
_STOP_SECONDS = 5.0

Kind = TypeVar("Kind", bound="frames.Answer")


class PairSettings(msgspec.Struct, frozen=True):
    """``name`` is for logs and messages; each side holds ``blocks``. ``bound``: to a core each."""

    name: str
    interpreter: Path
    blocks: int
    bound: bool = False


class Pair:
    """A sender and a receiver, started together and stopped together; a context manager.

    Any method raises TransportFailed. After one that was not answered in time the pair is of no
    use any more.
    """

    def __init__(self, settings: PairSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder / settings.name
        self._children: dict[Side, Child] = {}
        self._streams: dict[Side, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    @property
    def name(self) -> str:
        """See PairSettings."""
        return self._settings.name

    @property
    def blocks(self) -> int:
        """See PairSettings."""
        return self._settings.blocks

    @property
    def children(self) -> Sequence[Child]:
        """Both processes."""
        return list(self._children.values())

    async def __aenter__(self) -> Self:
        self._folder.mkdir(mode=0o700)
        path = self._folder / "conductor"
        server = await asyncio.start_unix_server(self._greet, path, limit=frames.LONGEST_FRAME)
        try:
            for side, core in zip(SIDES, _cores(self._settings.bound), strict=True):
                self._children[side] = self._launch(side, path, core)
            await self._until_both_are_there()
        except BaseException:
            await self._stop()
            raise
        finally:
            server.close()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def open(self, contender: Contender) -> str:
        """Both ends are there and know each other. The version of what moves the pages."""
        asked = frames.Open(contender)
        sender, receiver = await asyncio.gather(
            *(self._asked(side, asked, frames.Opened) for side in SIDES)
        )
        for side, other in zip(SIDES, (receiver, sender), strict=True):
            await self._asked(side, frames.Meet(contender, other.offer), frames.Done)
        return sender.version

    async def move(self, contender: Contender, case: Case) -> float:
        """Seconds from the moment the pages were supplied until all of them were usable."""
        for side in reversed(SIDES):
            await self._asked(side, frames.Arm(contender, case), frames.Done)
        for side in reversed(SIDES):  # the receiver is to wait when the sender begins
            await self._say(side, frames.Move(contender, case))
        told = await self._both_moved()
        began = [one.began for one in told if one.began is not None]
        ended = [one.ended for one in told if one.ended is not None]
        if not began or not ended or max(ended) <= min(began):
            raise TransportFailed(f"{contender.name} told no time for {case.label}")
        return max(ended) - min(began)

    async def check(self, contender: Contender, case: Case) -> None:
        """One move that is not measured, and what has become of the bytes."""
        await self._asked("receiver", frames.Wipe(case), frames.Done)
        await self.move(contender, case)
        checked = await self._asked("receiver", frames.Check(case), frames.Checked)
        if checked.wrong:
            raise TransportFailed(
                f"{contender.name}, {case.label}: {checked.wrong} of {case.blocks} blocks are "
                "not what was sent"
            )

    def pause(self) -> None:
        """Stop both processes until ``resume``: some spin while they wait, on others' cores."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo ``pause``."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for child in self.children:
            if child.running.poll() is None:
                child.running.send_signal(number)

    async def _until_both_are_there(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while len(self._streams) < len(SIDES):
            for child in self.children:
                if child.running.poll() is not None or time.monotonic() > deadline:
                    told = f"{self.name}: the {child.name} did not start: {child.tail(1)}"
                    raise TransportFailed(told)
            await asyncio.sleep(_POLL_SECONDS)

    def _launch(self, side: Side, path: Path, core: str) -> Child:
        words = (side, str(path), str(self._settings.blocks), core)
        command = [str(self._settings.interpreter), "-m", "bench.transport.process", *words]
        root = str(Path(bench.__file__).parent.parent)
        environ = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        return processes.launch(side, command, environ, self._folder)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = frames.decode_answer(await reader.readline())
        if isinstance(hello, frames.Hello):
            self._streams[hello.side] = reader, writer

    async def _both_moved(self) -> list[frames.Moved]:
        """As soon as one end has failed, the other, which waits for it, is not waited for."""
        awaited = [asyncio.ensure_future(self._answer(side, frames.Moved)) for side in SIDES]
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_EXCEPTION)
            return [one.result() for one in awaited if one.done()]
        finally:
            for one in awaited:
                one.cancel()

    async def _asked(self, side: Side, asked: frames.Asked, kind: type[Kind]) -> Kind:
        await self._say(side, asked)
        return await self._answer(side, kind)

    async def _say(self, side: Side, asked: frames.Asked) -> None:
        _, writer = self._streams[side]
        try:
            writer.write(frames.encode(asked))
            await writer.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise TransportFailed(f"{self.name}: the {side} ended") from None

    async def _answer(self, side: Side, kind: type[Kind]) -> Kind:
        reader, _ = self._streams[side]
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                line = await reader.readuntil(b"\n")
        except TimeoutError:
            raise TransportFailed(f"{self.name}: the {side} did not answer in time") from None
        except (asyncio.IncompleteReadError, ConnectionResetError):
            raise TransportFailed(
                f"{self.name}: the {side} ended: {await self._last_words(side)}"
            ) from None
        answer = frames.decode_answer(line)
        if isinstance(answer, frames.Trouble):
            raise TransportFailed(f"{self.name}, {side}: {answer.reason}")
        if not isinstance(answer, kind):
            raise TransportFailed(f"{self.name}: the {side} said {type(answer).__name__}")
        return answer

    async def _last_words(self, side: Side) -> str:
        """Its connection ends before it has written why it ends."""
        child = self._children[side]
        await _ended([child])
        return child.tail(1)

    async def _stop(self) -> None:
        """Ends close by themselves when the conductor hangs up, if they still can."""
        self.resume()
        for _, writer in self._streams.values():
            writer.close()
        await _ended(self.children)
        for child in self.children:
            await processes.stop(child, _STOP_SECONDS)


async def _ended(children: Sequence[Child]) -> None:
    """All of them, or the time for it is over."""
    deadline = time.monotonic() + _CLOSE_SECONDS
    while any(child.running.poll() is None for child in children):
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(_POLL_SECONDS)


def _cores(bound: bool) -> tuple[str, str]:
    allowed = sorted(os.sched_getaffinity(0))
    return (str(allowed[0]), str(allowed[-1])) if bound else ("any", "any")
