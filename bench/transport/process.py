"""One of the two processes that move pages: ``python -m bench.transport.process SIDE SOCKET …``.

It fills its pages, then does what the conductor asks, one thing after the other, until the
conductor hangs up. Contenders' libraries are loaded when they are asked for: whichever interpreter
runs this may have only some of them.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import cached_property
from pathlib import Path
from typing import assert_never

from bench.driving.quiet import no_collections
from bench.transport import content, frames
from bench.transport.case import Case, Side
from bench.transport.contender import (
    Contender,
    Gather,
    Kvferry,
    Memcpy,
    Mooncake,
    Nixl,
    PingPong,
    RawSocket,
)
from bench.transport.content import Pages
from bench.transport.ends.end import ADVICE, Bystander, End, Room, TransportFailed
from kvstore.errors import KvferryError


class Process:
    """One side's pages and the ends that have been opened on them."""

    def __init__(self, side: Side, folder: Path, blocks: int) -> None:
        fill = content.supplied if side == "sender" else content.awaiting
        self._side = side
        self._room = Room(fill(blocks), folder)
        self._held = blocks
        self._ends: dict[Contender, End] = {}

    def answer(self, asked: frames.Asked) -> frames.Answer:
        """Does what is asked."""
        match asked:
            case frames.Open(contender):
                end, version = self._opened(contender)
                self._ends[contender] = end
                return frames.Opened(end.offer, version)
            case frames.Meet(contender, offer):
                self._ends[contender].meet(offer)
            case frames.Arm(contender, case):
                self._ends[contender].arm(case)
            case frames.Move(contender, case):
                return self._ends[contender].move(case)
            case frames.Wipe(case):
                self._room.pages[self._places(case)] = 0
            case frames.Check(case):
                return frames.Checked(content.wrong_blocks(self._room.pages, case, self._held))
            case _:
                assert_never(asked)
        return frames.Done()

    def close(self) -> None:
        """Closes every end."""
        for end in self._ends.values():
            end.close()

    def _places(self, case: Case) -> list[int]:
        return case.pages(self._side, self._held)

    @cached_property
    def _source(self) -> Pages:
        return content.supplied(self._held)

    def _opened(self, contender: Contender) -> tuple[End, str]:
        """This side's end, and the version of what moves the pages."""
        match contender:
            case Memcpy() | Gather():
                return self._limit(contender), ""
            case RawSocket() | PingPong():
                return self._dialogue(contender), ""
            case Mooncake() | Nixl():
                return self._peer(contender)
            case Kvferry():
                return self._ours(contender), ""
            case _:
                assert_never(contender)

    def _ours(self, contender: Kvferry) -> End:
        from bench.transport.ends.kvferry import KvferryReceiver, KvferrySender

        kind = KvferrySender if self._side == "sender" else KvferryReceiver
        return kind(self._room, contender)

    def _limit(self, contender: Memcpy | Gather) -> End:
        from bench.transport.ends.limits import GatherEnd, MemcpyEnd

        if self._side == "sender":
            return Bystander()
        kind = MemcpyEnd if isinstance(contender, Memcpy) else GatherEnd
        return kind(self._source, self._room.pages)

    def _dialogue(self, contender: RawSocket | PingPong) -> End:
        from bench.transport.ends.pingpong import PingReceiver, PingSender
        from bench.transport.ends.raw import RawReceiver, RawSender

        if isinstance(contender, RawSocket):
            kind = RawSender if self._side == "sender" else RawReceiver
            return kind(self._room, contender.family)
        if self._side == "sender":
            return PingSender(self._room)
        return PingReceiver(self._room, contender.scheme)

    def _peer(self, contender: Mooncake | Nixl) -> tuple[End, str]:
        try:
            if isinstance(contender, Mooncake):
                from bench.transport.ends import mooncake

                kind = mooncake.MooncakeSender, mooncake.MooncakeReceiver
                return kind[self._side == "receiver"](self._room), mooncake.version()
            from bench.transport.ends import nixl

            ends = nixl.NixlSender, nixl.NixlReceiver
            return ends[self._side == "receiver"](self._room), nixl.version()
        except ImportError as error:
            told = f"{contender.name} cannot be loaded ({error}): {ADVICE}"
            raise TransportFailed(told) from None


def serve(conductor: socket.socket, process: Process) -> None:
    """Answers until the conductor hangs up."""
    with conductor, conductor.makefile("rb") as lines:
        for line in lines:
            try:
                answer = process.answer(frames.decode_asked(line))
            except (TransportFailed, KvferryError, OSError) as error:
                answer = frames.Trouble(" ".join(str(error).split())[:500])
            conductor.sendall(frames.encode(answer))


def main(words: list[str]) -> None:
    """``SIDE SOCKET BLOCKS CORE``; the core may be ``any``."""
    side: Side = "sender" if words[0] == "sender" else "receiver"
    path, blocks = Path(words[1]), int(words[2])
    if words[3] != "any":
        os.sched_setaffinity(0, {int(words[3])})
    process = Process(side, path.parent, blocks)
    conductor = socket.socket(socket.AF_UNIX)
    conductor.connect(str(path))
    conductor.sendall(frames.encode(frames.Hello(side)))
    with no_collections():
        serve(conductor, process)
    process.close()


if __name__ == "__main__":
    main(sys.argv[1:])
