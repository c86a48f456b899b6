"""What is sent: a chat goes on from its answer, and what is shared is the same text."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import msgspec

from bench.client import Client, Endpoint, Timeline
from bench.load.schedule import Segment
from bench.prediction.asking import Asked, Asking
from bench.prediction.load import Wanted

SYSTEM = Segment("system-0-60", 60)
FIRST = Wanted(0, 0.0, "chat", 0, Segment("turn-0", 5), 4, SYSTEM, conversation=0)


class Server(Client):
    """Answers each request with its number among all, the first one last."""

    def __init__(self, together: int) -> None:
        super().__init__(1.0)
        self.bodies: list[dict[str, Any]] = []
        self._together = together
        self._all_there = asyncio.Event()

    async def send(
        self, endpoint: Endpoint, path: str, content: bytes, intended: float, **_: object
    ) -> Timeline:
        self.bodies.append({"path": path, **msgspec.json.decode(content)})
        number = len(self.bodies)
        if number == self._together:
            self._all_there.set()
        await self._all_there.wait()
        now = time.monotonic()
        return Timeline(
            intended=intended,
            sent=intended,
            tokens=(now,),
            finished=now,
            status=200,
            error="",
            prompt_tokens=1,
            completion_tokens=1,
            cached_tokens=0,
            headers={},
            text=f"answer {number}",
        )


def ask(*wanted: Wanted, together: int = 1) -> tuple[list[Asked], list[dict[str, Any]]]:
    async def scenario() -> tuple[list[Asked], list[dict[str, Any]]]:
        server = Server(together)
        asking = Asking(server, [Endpoint("http://127.0.0.1:1")], "salt")
        async with asyncio.timeout(10):
            return await asking.run(wanted, lambda _: None), server.bodies

    return asyncio.run(scenario())


def test_a_turn_waits_for_the_answer_before_it_and_repeats_it() -> None:
    second = replace(FIRST, number=1, words=Segment("turn-1", 5), turn=1)
    other = Wanted(2, 0.0, "novel", 0, Segment("novel-2", 50), 4)
    found, bodies = ask(FIRST, second, other, together=2)  # the third one frees the first
    assert [one.number for one in found] == [0, 1, 2]
    assert [body["path"] for body in bodies] == [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/chat/completions",
    ]
    before, after = bodies[0]["messages"], bodies[2]["messages"]
    assert [one["role"] for one in after] == ["system", "user", "assistant", "user"]
    assert after[:2] == before
    assert after[2]["content"] == "answer 1"


def test_who_shares_a_text_begins_with_it() -> None:
    asked = [
        Wanted(at, 0.0, "completion", 0, Segment(f"question-{at}", 5), 4, SYSTEM) for at in (0, 1)
    ]
    again = replace(asked[0], number=2, kind="again", again=0)
    _, bodies = ask(*asked, again)
    one, other, repeated = (body["prompt"] for body in bodies)
    assert one == repeated != other
    assert one.split("\n\n")[0] == other.split("\n\n")[0]
    assert len(one.split()) == 65
