"""One client request from start to finish.

parse ─▶ render (tokens) ─▶ plan ─▶ both legs at once ─▶ relay, usage amended ─▶ release

What a client gets is always the decode leg's answer. Everything a request holds is given back in
one ``finally`` (``Flight``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from kvstore.blockhash import block_chain, block_names
from kvstore.clock import Clock
from kvstore.cluster import Proxy, Ship
from kvstore.errors import ApiError, WorkerLost
from kvstore.messages import ROLES, Announce, Role
from proxy import faults, requests, stages, steering, usage
from proxy.dispatch import Call, Dispatch, Job, Sent
from proxy.flight import Flight
from proxy.identity import Scope, salt
from proxy.loads import Loads, Places
from proxy.metrics import Metrics, Story
from proxy.render import render
from proxy.requests import ClientRequest
from proxy.stages import Moments
from proxy.steering import Disaggregated, Fleet, Holding, Prompt, Reject
from proxy.streaming import first_event, relay
from proxy.upstream import Upstream
from proxy.usage import PrefillEnd

TIMING_HEADER = "server-timing"
CACHED_HEADER = "x-kvferry-cached"

USAGE_SECONDS = 2.0
"""How long a finished answer waits for the prefill leg's figures."""


class Directory(Protocol):
    """Live workers and what each holds (``kvstore.index``)."""

    def expire(self, now: float) -> object: ...
    def workers(self, role: Role) -> Sequence[Announce]: ...
    def held(self, names: Sequence[bytes]) -> Mapping[str, Holding]: ...


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


class Pipeline:
    """Serves any number of requests at once in one event loop."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        upstream: Upstream,
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._upstream = upstream
        self._metrics = metrics
        self._clock = clock
        self._dispatch = Dispatch(upstream, settings.ship, metrics, self._spare)
        self._places = Places(settings.proxy.max_requests)
        self.loads = Loads()

    def live(self, role: Role) -> list[Announce]:
        """Workers of ``role`` that announced themselves lately, in any state."""
        self._directory.expire(self._clock())
        return list(self._directory.workers(role))

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
        request = requests.parse(call.route, call.body)
        model = self._model(request.model)
        scope = Scope(call.tenant.name, call.tenant.epoch)
        tokens, alone = None, request.alone
        if alone is None:
            tokens, alone = await self._tokens(call, request, model)
        job = Job(call, request, model, salt(self._settings.salt_key, scope), tokens, alone)
        plan = self._plan(job)
        if isinstance(plan, Reject):
            story.reason = plan.reason
            raise faults.overloaded("No decode worker is ready.")
        if isinstance(plan, Disaggregated):
            story.prefill = plan.prefill.worker
        story.decode = plan.decode.worker
        sent = await self._dispatch.send(job, plan, flight)
        flight.hold(sent.reply)
        story.decode = sent.decode.worker
        if sent.reply.status != 200:
            raise faults.from_worker(sent.reply.status, await sent.reply.body())
        if request.stream:
            story.first_token = flight.answered
        story.path, story.reason = sent.path, sent.reason
        return await self._deliver(job.request, sent, flight, story)

    def _model(self, name: str | None) -> str:
        served = sorted({worker.model for role in ROLES for worker in self.live(role)})
        if not served:
            raise faults.overloaded("No worker is ready.")
        if name is None:
            return served[0]
        if name not in served:
            raise faults.unknown_model(name, ", ".join(served))
        return name

    async def _tokens(
        self, call: Call, request: ClientRequest, model: str
    ) -> tuple[list[int] | None, str | None]:
        fleet = self._fleet(model, {})
        # The prefill workers compute; the others have a core to spare for a template.
        order = sorted(
            (worker for worker in fleet.decode if worker.state == "ready"),
            key=lambda worker: fleet.load.get(worker.worker, 0),
        )
        rendered = await render(self._upstream, order, request, call.request_id)
        return rendered.tokens, rendered.alone

    def _plan(self, job: Job) -> steering.Plan:
        fleet = self._fleet(job.model, {})
        if job.tokens is None or not fleet.decode:
            return steering.plan(Prompt(0, 0), job.alone, fleet)
        size = fleet.decode[0].block_size
        names = block_names(block_chain(job.tokens, size, job.salt)) if size else []
        fleet = self._fleet(job.model, self._directory.held(names))
        return steering.plan(Prompt(len(job.tokens), size), job.alone, fleet)

    def _spare(self, model: str, lost: str) -> Announce | None:
        fleet = self._fleet(model, {})
        return steering.best([w for w in fleet.decode if w.worker != lost], fleet)

    def _fleet(self, model: str, held: Mapping[str, Holding]) -> Fleet:
        prefill, decode = (
            [worker for worker in self.live(role) if worker.model == model] for role in ROLES
        )
        return Fleet(prefill, decode, self.loads.snapshot(), held)

    async def _deliver(
        self, request: ClientRequest, sent: Sent, flight: Flight, story: Story
    ) -> Answer:
        def moments() -> Moments:
            assert flight.answered is not None
            ended, answered = flight.prefill_ended, flight.answered
            return Moments(story.began, flight.sent, ended, answered, request.stream)

        async def amend(figures: dict[str, Any]) -> dict[str, Any]:
            decode_cached = usage.reported_cached(figures)
            end = await _prefill_end(flight, sent, decode_cached)
            cached = usage.cached_tokens(sent.path, sent.outcome, decode_cached, end)
            story.account = usage.account(figures, cached)
            story.tiers = usage.tiers(sent.path, cached, end)
            story.stages = stages.stages(sent.path, moments(), _told(sent, end))
            told = {"stages": story.stages, "cached": story.tiers}
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
