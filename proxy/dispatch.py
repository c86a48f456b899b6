"""Sending the legs of a planned request: both at once.

The prefill leg never fails the request. Where it does not deliver, decode is told, again and
again until it has settled, to await nothing more; it then computes the prompt itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from kvstore.cluster import Ship
from kvstore.curves import Sample
from kvstore.errors import WireError, WorkerLost
from kvstore.handoff import (
    DecodeTicket,
    LocalTicket,
    PrefillReport,
    PrefillTicket,
    decode_computes_rest,
    prefill_report,
)
from kvstore.messages import Announce, Outcome, Times
from kvstore.salts import OWNER_HEADER
from proxy import legs, usage
from proxy.flight import Flight
from proxy.jobs import Job
from proxy.metrics import Metrics
from proxy.requests import PATHS
from proxy.steering import DecodeOnly, Disaggregated
from proxy.turns import Turns
from proxy.upstream import REQUEST_HEADER, TRANSFER_HEADER, Reply, Upstream
from proxy.usage import Path, PrefillEnd
from proxy.wire import decoded

_OVER = "http-409"
"""How a leg fails whose tenant was flushed: its worker is as good as before, for all others."""

log = logging.getLogger("kvferry.proxy")
Told = TypeVar("Told")

_ABANDON_PAUSES = (0.05, 0.1, 0.25, 0.5, *(1.0 for _ in range(30)))
"""Seconds between tellings; together about as long as decode would wait by itself."""

LEAST_MS = 0.1
"""No prompt is computed in less."""

Spare = Callable[[str, str], Announce | None]
"""(model, worker that was lost) to another decode worker, if there is one."""


@dataclass(frozen=True)
class Sent:
    """The decode leg's reply, its headers read: by whom, and which path the request took.

    ``times`` is when the worker's engine began, as far as it told.
    """

    reply: Reply
    decode: Announce
    path: Path
    reason: str
    outcome: Outcome | None
    times: Times | None


class Dispatch:
    """Sends legs. Without state of its own: what a request holds is in its flight."""

    def __init__(
        self, upstream: Upstream, ship: Ship, metrics: Metrics, spare: Spare, turns: Turns
    ) -> None:
        self._upstream = upstream
        self._ship = ship
        self._metrics = metrics
        self._spare = spare
        self._turns = turns

    async def send(self, job: Job, plan: Disaggregated | DecodeOnly, flight: Flight) -> Sent:
        """Both legs of ``plan``; returns when the decode leg answers. Raises WorkerLost."""
        ticket = None
        if isinstance(plan, Disaggregated):
            ticket = DecodeTicket(
                transfer=secrets.token_hex(16),
                ttl_ms=_milliseconds(self._ship.deadline_seconds),
                ship=plan.given.worker.ship,
                sender_generation=plan.given.worker.generation,
                held=plan.given.held,
            )
            leg = self._prefill_leg(job, plan, ticket.transfer, flight)
            flight.to_prefill(asyncio.create_task(leg, name="prefill leg"))
        try:
            reply, decode, ticketed = await self._decode_leg(job, plan.decode, ticket, flight)
        finally:
            flight.settled.set()
        outcome, times = _told(reply.outcome), _told(reply.times)
        alone = plan.reason if isinstance(plan, DecodeOnly) else None
        path, reason = usage.path_taken(alone, ticketed, outcome)
        if isinstance(plan, Disaggregated) and reason == "deadline":
            self._turns.failed(plan.given)  # its leg may hang for as long as the answer takes
        return Sent(reply, decode, path, reason, outcome, times)

    async def _decode_leg(
        self, job: Job, worker: Announce, ticket: DecodeTicket | None, flight: Flight
    ) -> tuple[Reply, Announce, bool]:
        """The reply of ``worker``, or of another one if it is lost before its first token.

        And who gave it, and whether that worker had a ticket.
        """
        try:
            reply = await self._post(job, worker, ticket, flight)
        except WorkerLost as lost:
            self._metrics.leg_failed("decode", "lost" if lost.connected else "unreachable")
            spare = self._spare(job.model, worker.worker)
            if spare is None:
                raise
            if lost.connected:
                # The lost worker may have opened the transfer: it is good for nobody else.
                await flight.drop_prefill()
                ticket = None
        else:
            return reply, worker, ticket is not None
        reply = await self._post(job, spare, ticket, flight)
        return reply, spare, ticket is not None

    async def _post(
        self, job: Job, worker: Announce, ticket: DecodeTicket | None, flight: Flight
    ) -> Reply:
        flight.to_decode(worker)
        handed = ticket or _local_ticket(job)
        body = legs.decode_body(job.request, job.salt, job.prompt, handed)
        headers = {REQUEST_HEADER: job.call.request_id, OWNER_HEADER: job.claim}
        if handed is not None:
            headers[TRANSFER_HEADER] = handed.transfer
        return await self._upstream.post(worker.http, PATHS[job.call.route], body, headers)

    async def _prefill_leg(
        self, job: Job, plan: Disaggregated, transfer: str, flight: Flight
    ) -> PrefillEnd:
        assert job.tokens is not None
        assert job.prompt is not None
        ttl_ms = _milliseconds(self._ship.deadline_seconds)
        ticket = PrefillTicket(transfer, ttl_ms, plan.given.held)
        body = legs.prefill_body(job.model, job.prompt, job.salt, ticket)
        request_id, worker = job.call.request_id, plan.given.worker
        with flight.counted(worker):
            headers = {
                REQUEST_HEADER: request_id,
                TRANSFER_HEADER: transfer,
                OWNER_HEADER: job.claim,
            }
            end = await self._prefilled(worker.http, body, headers)
        if end.failure is None:
            took = _took(end, len(job.tokens), worker.block_size)
            self._turns.ended(plan.given, computed=True, took=took)
        else:
            if end.failure == _OVER:
                self._turns.ended(plan.given, computed=False)
            else:
                self._turns.failed(plan.given)
            self._metrics.leg_failed("prefill", end.failure)
            log.warning(
                "request=%s prefill leg on %s failed: %s", request_id, worker.worker, end.failure
            )
            await self._abandon(transfer, request_id, flight)
        return end

    async def _prefilled(
        self, http: str, body: dict[str, Any], headers: Mapping[str, str]
    ) -> PrefillEnd:
        try:
            reply = await self._upstream.post(http, legs.PREFILL_PATH, body, headers)
        except WorkerLost as lost:
            return PrefillEnd(lost.connected, failure="lost" if lost.connected else "unreachable")
        try:
            if reply.status != 200:
                return PrefillEnd(connected=True, failure=f"http-{reply.status}")
            fields, figures = usage.split_reply(await reply.body())
        except WorkerLost:
            return PrefillEnd(connected=True, failure="lost")
        finally:
            reply.close()
        report = _told(lambda: _report(fields))
        return PrefillEnd(connected=True, cached=usage.reported_cached(figures), report=report)

    async def _abandon(self, transfer: str, request_id: str, flight: Flight) -> None:
        """Tells decode that nothing will come, until it has settled.

        Told once is not enough: the decode leg may not have reached its engine yet.
        """
        headers = {REQUEST_HEADER: request_id}
        path = f"/kvferry/abandon/{transfer}"
        for pause in _ABANDON_PAUSES:
            if flight.settled.is_set() or flight.decode is None:
                return
            try:
                (await self._upstream.post(flight.decode.http, path, {}, headers)).close()
            except WorkerLost:
                log.debug("abandon not delivered")  # the decode leg finds out as well, and moves
            try:
                async with asyncio.timeout(pause):
                    await flight.settled.wait()
            except TimeoutError:
                continue


def _took(end: PrefillEnd, tokens: int, block_size: int) -> Sample | None:
    """How long prefill computed; None where that is unknown, or decode was to compute the rest."""
    new = tokens - end.had
    if end.report is None or end.report.prefill_ms < LEAST_MS or new < 1:
        return None
    if decode_computes_rest(end.had, tokens, block_size):
        return None
    return Sample(new, end.had, end.report.prefill_ms / 1000)


def _local_ticket(job: Job) -> LocalTicket | None:
    # vLLM's beam search drops tickets; its worker would wait for a report that never comes.
    return None if job.alone == "beam-search" else LocalTicket(secrets.token_hex(16))


def _report(fields: Mapping[str, msgspec.Raw]) -> PrefillReport | None:
    raw = fields.get("kv_transfer_params")
    return None if raw is None else prefill_report(decoded(bytes(raw)))


def _told(read: Callable[[], Told | None]) -> Told | None:
    """What a worker told; None where that is malformed."""
    try:
        return read()
    except WireError as error:
        log.warning("%s", error)
        return None


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
