"""One client request from start to finish.

parse ─▶ render (tokens) ─▶ plan ─▶ wait for a prefill worker ─▶ both legs at once
      ─▶ relay, usage amended ─▶ release

What a client gets is always the decode leg's answer. Everything a request holds is given back in
one ``finally`` (``Flight``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from kvstore.clock import Clock
from kvstore.cluster import Dram, Proxy, Ship, Tenant
from kvstore.errors import ApiError, WorkerLost
from kvstore.index import Directory
from kvstore.messages import Announce, Role
from kvstore.salts import Scope, one_shot, salt
from proxy import explaining, faults, hints, requests, stages, usage
from proxy.catalogue import Served
from proxy.dispatch import Dispatch, Sent
from proxy.flight import Flight
from proxy.jobs import Call, Job
from proxy.loads import Loads, Peers, Places
from proxy.metrics import Metrics, Story
from proxy.planning import Planner
from proxy.render import Renderer
from proxy.requests import ClientRequest
from proxy.stages import Moments
from proxy.steering import Disaggregated, Reject
from proxy.streaming import first_event, relay
from proxy.turns import Turns
from proxy.upstream import Upstream
from proxy.usage import PrefillEnd

TIMING_HEADER = "server-timing"
PLAN_HEADER = "x-kvferry-plan"
"""Only for who sends the operator's token beside the API key."""
CACHED_HEADER = "x-kvferry-cached"

USAGE_SECONDS = 2.0
"""How long a finished answer waits for the prefill leg's figures."""


@dataclass(frozen=True)
class Answer:
    """What the client is sent: a whole body, or the pieces of one as they come."""

    content: bytes | AsyncIterator[bytes]
    content_type: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """What a pipeline needs of the cluster's configuration and secrets."""

    proxy: Proxy
    ship: Ship
    salt_key: bytes
    dram: Dram


@dataclass(frozen=True)
class Parts:
    """What a pipeline works with: what it knows of workers and of other proxies, and what it calls.

    All belong to the one event loop.
    """

    directory: Directory
    peers: Peers
    upstream: Upstream
    metrics: Metrics
    renderer: Renderer


class Pipeline:
    """Serves any number of requests at once in one event loop."""

    def __init__(self, settings: Settings, parts: Parts, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._directory = parts.directory
        self._metrics = parts.metrics
        self._renderer = parts.renderer
        self._clock = clock
        self._places = Places(settings.proxy.max_requests)
        self.loads = Loads(parts.peers)
        limit, chunk = settings.proxy.tenant_waiting, settings.dram.chunk_tokens
        self._turns = Turns(parts.directory, parts.peers, limit, clock, chunk)
        self._planner = Planner(parts.directory, self.loads, self._turns, clock)
        self._dispatch = Dispatch(
            parts.upstream, settings.ship, parts.metrics, self._planner.spare, self._turns
        )

    @property
    def waiting(self) -> int:
        """How many requests wait for a prefill worker."""
        return len(self._turns)

    def heard(self) -> None:
        """Something came from workers: perhaps one has room for who waits."""
        self._turns.look()

    def forget_tenant(self, tag: str) -> None:
        """What is remembered of a tenant's prompts is dropped (``kvstore.salts.tag``)."""
        self._planner.forget_tenant(tag)
        self._renderer.forget_tenant(tag)

    def check(self) -> None:
        """Invariant when idle: no worker is thought to be busy. Raises AssertionError."""
        self.loads.check()
        self._turns.check()

    def live(self, role: Role) -> list[Announce]:
        """Workers of ``role`` that announced themselves lately, in any state."""
        self._directory.expire(self._clock())
        return list(self._directory.workers(role))

    async def explain(self, call: Call) -> dict[str, Any]:
        """What would be done with ``call`` now (``proxy.explaining``). Raises ApiError."""
        seconds = self._settings.proxy.request_seconds
        try:
            async with asyncio.timeout(seconds):
                return self._explanation(await self._job(call))
        except TimeoutError:
            raise faults.timed_out(seconds) from None

    @asynccontextmanager
    async def answer(self, call: Call) -> AsyncIterator[Answer]:
        """The answer to ``call``; leaving the context ends the request and frees all it held.

        Raises ApiError: at entry for a request that cannot be served, inside for one that broke
        off. Entry returns when the first token is there.
        """
        story = Story(call.request_id, call.tenant.name, call.route, call.arrived)
        seconds = self._settings.proxy.request_seconds
        flight = Flight(self.loads, self._clock)
        self._metrics.began()
        try:
            with self._places.one():
                async with asyncio.timeout(seconds):
                    yield await self._begin(call, flight, story)
            story.status = 200
        except TimeoutError:
            story.status = 504
            raise faults.timed_out(seconds) from None
        except WorkerLost:
            story.status = 503
            raise faults.overloaded("The worker serving this request was lost.") from None
        except asyncio.CancelledError as ended:
            if faults.FLUSHED in ended.args:
                story.status, story.reason = 409, faults.FLUSHED
            raise
        except ApiError as error:
            story.status = error.status
            story.reason = story.reason or error.code or ""
            raise
        finally:
            try:
                self._metrics.ended(story, self._clock())
            finally:
                await flight.release()

    async def _begin(self, call: Call, flight: Flight, story: Story) -> Answer:
        job = await self._job(call)
        explanation = self._explanation(job) if call.explained else None
        until = call.arrived + self._settings.proxy.request_seconds
        decided = await self._planner.plan(job, flight, until)
        plan, story.predicted = decided.plan, decided.predicted
        if isinstance(plan, Reject):
            story.reason = plan.reason
            raise faults.overloaded("No decode worker is ready.")
        if isinstance(plan, Disaggregated):
            story.prefill = plan.given.worker.worker
        story.decode = plan.decode.worker
        sent = await self._dispatch.send(job, plan, flight)
        flight.hold(sent.reply)
        story.decode = sent.decode.worker
        if sent.reply.status != 200:
            raise faults.from_worker(sent.reply.status, await sent.reply.body())
        if job.request.stream:
            story.first_token = flight.answered
        story.path, story.reason = sent.path, sent.reason
        answer = await self._deliver(job, sent, flight, story)
        if explanation is not None:
            if story.predicted is not None:
                explanation["predicted"] = story.predicted.told()
            told = msgspec.json.encode(explanation).decode()
            return replace(answer, headers={**answer.headers, PLAN_HEADER: told})
        return answer

    def _explanation(self, job: Job) -> dict[str, Any]:
        considered = self._planner.consider(job)
        return explaining.explanation(job, considered, self._planner.candidates(considered))

    async def _job(self, call: Call) -> Job:
        request = requests.parse(call.route, call.body, call.asides)
        served = self._served(request.model)
        request = replace(request, body={**request.body, "model": served.model})
        salted = self._salt(call.tenant, request, served)
        tokens, alone = None, request.alone
        if alone is None:
            order = self._planner.idlest(served.model)
            rendered = await self._renderer.tokens(salted, request, order, call.request_id)
            tokens, alone = rendered.tokens, rendered.alone
        hint = None if request.hint is None else hints.number(call.tenant.name, request.hint)
        return Job(call, request, served, salted, tokens, alone, hint)

    def _salt(self, tenant: Tenant, request: ClientRequest, served: Served) -> str:
        key = self._settings.salt_key
        if not request.kept:
            return one_shot(key, tenant.name, tenant.epoch)
        return salt(key, served.within(Scope(tenant.name, tenant.epoch, request.sub_scope)))

    def _served(self, name: str | None) -> Served:
        models = self._planner.models()
        if not models:
            raise faults.overloaded("No worker is ready.")
        if name is None:
            return next(iter(models.values()))
        if name not in models:
            known = dict.fromkeys(served.name for served in models.values())
            raise faults.unknown_model(name, ", ".join(known))
        return models[name]

    async def _deliver(self, job: Job, sent: Sent, flight: Flight, story: Story) -> Answer:
        request = job.request

        def moments() -> Moments:
            assert flight.answered is not None
            ended, answered = flight.prefill_ended, flight.answered
            return Moments(story.began, flight.routed, ended, answered, request.stream)

        async def amend(figures: dict[str, Any]) -> dict[str, Any]:
            decode_cached = usage.reported_cached(figures)
            end = await _prefill_end(flight, sent, decode_cached)
            cached = usage.cached_tokens(sent.path, sent.outcome, decode_cached, end)
            story.account = usage.account(figures, cached)
            story.tiers = usage.tiers(sent.path, cached, end)
            story.stages = stages.stages(sent.path, moments(), _told(sent, end))
            told: dict[str, Any] = {"stages": story.stages, "cached": story.tiers}
            if story.predicted is not None:
                if request.stream:
                    self._planner.learn(
                        sent.decode, story.predicted, sent.path, story.stages, cached
                    )
                if job.call.explained:
                    told["predicted"] = story.predicted.told()
            return {"usage": usage.amended(figures, cached), "kvferry": told}

        headers: dict[str, str] = {"x-kvferry-path": sent.path}
        if not request.stream:
            fields, figures = usage.split_reply(await sent.reply.body())
            whole = usage.whole_reply(fields, (await amend(figures))["usage"])
            headers[TIMING_HEADER] = stages.timing_header(moments(), story.stages)
            headers[CACHED_HEADER] = usage.tiers_header(story.tiers)
            return Answer(whole, "application/json", headers)
        early = stages.so_far(sent.path, moments(), _told(sent, flight.prefill_result()))
        headers[TIMING_HEADER] = stages.timing_header(moments(), early)
        chunks = sent.reply.chunks()
        begun = await first_event(chunks)
        if (error := faults.in_event(begun)) is not None:
            raise error
        pieces = relay(_again(begun, chunks), amend, keep_usage=request.wants_usage)
        return Answer(pieces, "text/event-stream; charset=utf-8", headers)


def _told(sent: Sent, end: PrefillEnd | None) -> stages.Told:
    return stages.told(sent.times, sent.outcome, end)


async def _prefill_end(flight: Flight, sent: Sent, decode_cached: int) -> PrefillEnd | None:
    local = sent.outcome.local_tokens if sent.outcome is not None else decode_cached
    if sent.path == "recomputed" and local == 0:
        return PrefillEnd(connected=True)  # whatever it says nothing was cached: no need to wait
    return await flight.prefill_end(USAGE_SECONDS)


async def _again(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
