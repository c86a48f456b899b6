"""One process's share of a load: every request at its time, every outcome a record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from bench.client import Client, Timeline, failed
from bench.driving.target import Target
from bench.load.schedule import Pacing, Planned, Schedule
from bench.load.words import Words
from bench.records import PATH_HEADER, STAGES, TIERS, Record

TIMER_SECONDS = 0.002
"""Event loops' timers are this inexact; the rest of the way is spent looking at the clock."""

MOST = 1e9
"""No count or duration that a server tells is larger than this; a strange one is left out."""

CUT_OFF = "cut off: the run was stopped"
NOT_SENT = "not sent: an earlier turn failed"

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
                # Sent before the run's begin, a request would have come before it was wanted.
                await _until(begin)
                waiting = iter(self._talks)
                for _ in range(self._in_flight_limit):
                    group.create_task(self._user(waiting))

    async def _open_loop(self, group: asyncio.TaskGroup) -> None:
        for talk in self._talks:
            intended = self._begin + (talk[0].at or 0.0)
            await _until(intended)
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
                self._leave_out(talk[talk.index(planned) + 1 :])
                return
            said += (self._prompt(planned), timeline.text)

    def _leave_out(self, turns: Sequence[Planned]) -> None:
        """A conversation does not go on after an answer that never came; its other turns were
        asked for all the same, so each leaves a record."""
        for planned in turns:
            self._keep(self._record(planned, failed(time.monotonic(), NOT_SENT)))

    async def _send(
        self, planned: Planned, body: bytes, intended: float, keep_text: bool
    ) -> Timeline:
        self.in_flight += 1
        self.sent += 1
        sent = time.monotonic()
        try:
            timeline = await self._server.send(planned, body, intended, keep_text)
        except asyncio.CancelledError:
            self._keep(self._record(planned, failed(intended, CUT_OFF, sent)))
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
            prompt_tokens=_count(timeline.usage.get("prompt_tokens")),
            output_tokens=_count(timeline.usage.get("completion_tokens")),
            cached_tokens=_count(_details(timeline.usage).get("cached_tokens")),
            path=timeline.headers.get(PATH_HEADER, ""),
            stages=_figures(timeline.trailer.get("stages"), STAGES),
            tiers={
                name: int(count)
                for name, count in _figures(timeline.trailer.get("cached"), TIERS).items()
            },
        )


async def _until(moment: float) -> None:
    """Not before ``moment`` (monotonic) and hardly after it.

    The event loop has its turn also when it is late, or one long burst would keep answers from
    being read.
    """
    await asyncio.sleep(max(0.0, moment - time.monotonic() - TIMER_SECONDS))
    while time.monotonic() < moment:  # noqa: ASYNC110 -- the time itself is awaited
        await asyncio.sleep(0)


def conversations(requests: Iterable[Planned]) -> list[list[Planned]]:
    """Requests by conversation, in order of their first turns' times."""
    found: dict[int, list[Planned]] = {}
    for planned in requests:
        found.setdefault(planned.conversation, []).append(planned)
    return sorted(found.values(), key=lambda talk: talk[0].at or 0.0)


def _details(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """vLLM leaves these out both where it may not tell and where nothing was cached."""
    return usage.get("prompt_tokens_details") or {}


def _count(told: object) -> int | None:
    """A server's count, unless it cannot be one."""
    return told if type(told) is int and 0 <= told <= MOST else None


def _figures(told: object, known: Iterable[str]) -> Mapping[str, float]:
    """The numbers among what a server told under ``known`` names, unless they cannot be any."""
    if not isinstance(told, Mapping):
        return {}
    return {
        name: float(told[name])
        for name in known
        if type(told.get(name)) in (int, float) and 0 <= told[name] <= MOST
    }
