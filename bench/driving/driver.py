"""One process's share of a load: every request at its time, every outcome a record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from bench.client import Client, Timeline
from bench.driving.target import Target
from bench.load.schedule import Pacing, Planned, Schedule
from bench.load.words import Words
from bench.records import STAGES, TIERS, Record

PATH_HEADER = "x-kvferry-path"

TIMER_SECONDS = 0.002
"""Event loops' timers are this inexact; the rest of the way is spent looking at the clock."""

Keep = Callable[[Record], None]


class Server(Protocol):
    """Whatever answers a planned request."""

    def body(self, talk: Sequence[str], output_tokens: int) -> bytes:
        """JSON of a request; ``talk``: user and assistant in turn."""

    async def send(
        self, planned: Planned, body: bytes, intended: float, keep_text: bool
    ) -> Timeline:
        """The answer; failures are in the timeline."""


class TargetServer:
    """A server that is reached by address."""

    def __init__(self, client: Client, target: Target) -> None:
        self._client = client
        self._target = target

    def body(self, talk: Sequence[str], output_tokens: int) -> bytes:
        """See Server."""
        return self._target.body(talk, output_tokens)

    async def send(
        self, planned: Planned, body: bytes, intended: float, keep_text: bool
    ) -> Timeline:
        """See Server."""
        endpoint = self._target.endpoint(planned.tenant)
        path = self._target.path
        return await self._client.send(endpoint, path, body, intended, keep_text=keep_text)


class Driver:
    """Sends a schedule's measured requests. ``keep`` is given each record as it comes to be."""

    def __init__(self, server: Server, schedule: Schedule, salt: str, keep: Keep) -> None:
        self._server = server
        self._pacing: Pacing = schedule.pacing
        self._in_flight_limit = schedule.in_flight
        self._names = schedule.tenants
        self._words = Words(salt)
        self._keep = keep
        self._talks = conversations(schedule.requests)
        # Encoded before the clock runs: making bodies under load would delay the schedule.
        self._first = {
            talk[0].number: server.body((self._prompt(talk[0]),), talk[0].output_tokens)
            for talk in self._talks
        }
        self._begin = 0.0
        self.in_flight = 0
        self.sent = 0

    async def run(self, begin: float) -> None:
        """Everything, from ``begin`` (monotonic) until the last answer has come.

        Cancelled, it closes the connections; requests under way leave a record that says so.
        """
        self._begin = begin
        async with asyncio.TaskGroup() as group:
            if self._pacing == "open":
                await self._open_loop(group)
            else:
                waiting = iter(self._talks)
                for _ in range(self._in_flight_limit):
                    group.create_task(self._user(waiting))

    async def _open_loop(self, group: asyncio.TaskGroup) -> None:
        for talk in self._talks:
            intended = self._begin + (talk[0].at or 0.0)
            # Also when late, or one long burst would keep answers from being read.
            await asyncio.sleep(max(0.0, intended - time.monotonic() - TIMER_SECONDS))
            while time.monotonic() < intended:  # noqa: ASYNC110 -- the time itself is awaited
                await asyncio.sleep(0)
            group.create_task(self._converse(talk, intended))

    async def _user(self, waiting: Iterable[Sequence[Planned]]) -> None:
        for talk in waiting:
            # A batch is wanted at once; whatever waits its turn in the client has been waiting.
            intended = self._begin if self._pacing == "batch" else time.monotonic()
            await self._converse(talk, intended)

    async def _converse(self, talk: Sequence[Planned], intended: float) -> None:
        said: list[str] = []
        body = self._first.pop(talk[0].number)
        for planned in talk:
            if planned.turn:
                intended = time.monotonic() + planned.think
                await asyncio.sleep(planned.think)
                body = self._server.body((*said, self._prompt(planned)), planned.output_tokens)
            more = len(talk) > 1
            timeline = await self._send(planned, body, intended, keep_text=more)
            if timeline.error:
                return  # a conversation does not go on after an answer that never came
            said += (self._prompt(planned), timeline.text)

    async def _send(
        self, planned: Planned, body: bytes, intended: float, keep_text: bool
    ) -> Timeline:
        self.in_flight += 1
        self.sent += 1
        sent = time.monotonic()
        try:
            timeline = await self._server.send(planned, body, intended, keep_text)
        except asyncio.CancelledError:
            self._keep(self._cut_off(planned, intended, sent))
            raise
        finally:
            self.in_flight -= 1
        self._keep(self._record(planned, timeline))
        return timeline

    def _prompt(self, planned: Planned) -> str:
        return self._words.prompt(planned.prompt)

    def _record(self, planned: Planned, timeline: Timeline) -> Record:
        begin = self._begin
        first_byte = timeline.first_byte
        return Record(
            number=planned.number,
            phase=planned.phase,
            tenant=self._names[planned.tenant],
            conversation=planned.conversation,
            turn=planned.turn,
            planned_prompt_tokens=planned.prompt_tokens,
            planned_output_tokens=planned.output_tokens,
            shared_tokens=planned.shared_tokens,
            intended=timeline.intended - begin,
            sent=timeline.sent - begin,
            first_byte=None if first_byte is None else first_byte - begin,
            tokens=tuple(at - begin for at in timeline.tokens),
            finished=timeline.finished - begin,
            status=timeline.status,
            error=timeline.error,
            prompt_tokens=timeline.usage.get("prompt_tokens"),
            output_tokens=timeline.usage.get("completion_tokens"),
            # vLLM leaves the details out both where it may not tell and where nothing was cached.
            cached_tokens=timeline.cached_tokens if timeline.usage else None,
            path=timeline.headers.get(PATH_HEADER, ""),
            stages=_figures(timeline.trailer.get("stages"), STAGES),
            tiers={
                name: int(count)
                for name, count in _figures(timeline.trailer.get("cached"), TIERS).items()
            },
        )

    def _cut_off(self, planned: Planned, intended: float, sent: float) -> Record:
        return Record(
            number=planned.number,
            phase=planned.phase,
            tenant=self._names[planned.tenant],
            conversation=planned.conversation,
            turn=planned.turn,
            planned_prompt_tokens=planned.prompt_tokens,
            planned_output_tokens=planned.output_tokens,
            shared_tokens=planned.shared_tokens,
            intended=intended - self._begin,
            sent=sent - self._begin,
            first_byte=None,
            finished=time.monotonic() - self._begin,
            error="cut off: the run was stopped",
        )


def conversations(requests: Iterable[Planned]) -> list[list[Planned]]:
    """Requests by conversation, in order of their first turns' times."""
    found: dict[int, list[Planned]] = {}
    for planned in requests:
        found.setdefault(planned.conversation, []).append(planned)
    return sorted(found.values(), key=lambda talk: talk[0].at or 0.0)


def _figures(told: Any, known: Iterable[str]) -> Mapping[str, float]:  # noqa: ANN401
    """The numbers among what a server told under ``known`` names."""
    if not isinstance(told, Mapping):
        return {}
    return {name: float(told[name]) for name in known if isinstance(told.get(name), int | float)}
