"""A gate admits who is not of an epoch that is over, ends who is, and has its engine told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from kvstore import errands
from kvstore.errands import Errands
from kvstore.exchange import Event, Receive, Scope, Send
from kvstore.gate import Gate
from kvstore.handoff import TenancyReport, tenancy_ticket, to_params
from kvstore.messages import Standing

TAG, OTHER = "0123456789abcdef", "f" * 16
TOKEN = b"cluster-token"
LEG = "/v1/completions"


class Plain(Gate):
    """A gate without a role."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Engine:
    """An application that answers legs when told, or when their callers are gone, and errands."""

    def __init__(self) -> None:
        self.gate = Plain(self.app)
        self.gate._token, self.gate._is_open = TOKEN, True
        self.gate._errands = Errands(self.app, "m")
        self.go_on = asyncio.Event()
        self.streams = False
        self.stubborn = False
        self.seen: list[str] = []
        self.heard: list[tuple[Standing, ...]] = []
        self.flushing = [0]
        self.errand_status = 200

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        event = await receive()
        ticket = tenancy_ticket(json.loads(event["body"] or b"{}").get("kv_transfer_params"))
        if ticket is not None:
            await self.errand(scope, ticket.standings, send)
            return
        if self.streams:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        gone = asyncio.ensure_future(self.gone(receive))
        told = asyncio.ensure_future(self.go_on.wait())
        try:
            await asyncio.wait({gone, told}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        finally:
            gone.cancel()
            told.cancel()
        if not self.streams:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"vLLM's"})

    async def gone(self, receive: Receive) -> None:
        self.seen.append((await receive())["type"])
        if self.stubborn:
            await asyncio.Event().wait()

    async def errand(self, scope: Scope, standings: tuple[Standing, ...], send: Send) -> None:
        assert (scope["path"], scope["method"]) == (LEG, "POST")
        self.heard.append(standings)
        if self.errand_status == 0:
            await asyncio.Event().wait()
        flushing = self.flushing.pop(0) if len(self.flushing) > 1 else self.flushing[0]
        answer = {"kv_transfer_params": to_params(TenancyReport(flushing))}
        await send({"type": "http.response.start", "status": self.errand_status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def tell(self, *standings: Standing) -> tuple[int, bytes]:
        body = [[one.tag, one.epoch, one.floor, one.limit] for one in standings]
        return await self.post("/kvferry/tenancy", json.dumps(body).encode())

    async def post(
        self, path: str, body: bytes = b"{}", owner: str | None = None
    ) -> tuple[int, bytes]:
        """Status and body; a call that broke has a body that ends in "…"."""
        headers = [(b"x-kvferry-token", TOKEN)]
        if owner is not None:
            headers.append((b"x-kvferry-owner", owner.encode()))
        scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        events: list[Event] = []
        parts = [body[at : at + 40_000] for at in range(0, len(body), 40_000)] or [b""]

        async def receive() -> Event:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            return await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(event: Event) -> None:
            events.append(event)

        await self.gate(scope, receive, send)
        found = b"".join(event.get("body", b"") for event in events)
        broke = events[-1].get("more_body", False)
        return events[0]["status"], found + (b"..." if broke else b"")


def run(scenario: Callable[[Engine], Awaitable[None]]) -> None:
    async def whole() -> None:
        engine = Engine()
        await asyncio.wait_for(scenario(engine), 20)
        running = engine.gate._errands and engine.gate._errands._running
        if running:
            await asyncio.wait_for(running, 20)
        assert not engine.gate._admission._under_way

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands, "AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(errands, "ERRAND_SECONDS", 0.01)
    monkeypatch.setattr(errands, "GIVE_UP_SECONDS", 0.2)
    monkeypatch.setattr("kvstore.exchange.GRACE_SECONDS", 0.01)


async def turns() -> None:
    for _ in range(20):  # of the loop: enough for whoever waits to go on
        await asyncio.sleep(0)


def test_nobody_is_let_in_before_the_gate_was_told_and_nothing_to_tell_counts() -> None:
    async def scenario(engine: Engine) -> None:
        engine.go_on.set()
        assert (await engine.post(LEG, owner=f"{TAG}-0"))[0] == 503
        assert (await engine.tell())[0] == 200
        assert await engine.post(LEG, owner=f"{TAG}-0") == (200, b"vLLM's")
        assert engine.heard == []

    run(scenario)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("owner", [None, "", "x", TAG, f"{TAG}-", f"{TAG}-01", f"{TAG}--1"])
def test_a_leg_says_whose_it_is(path: str, owner: str | None) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.tell()
        assert (await engine.post(path, owner=owner))[0] == 400

    run(scenario)


def test_an_epoch_that_is_over_stays_over() -> None:
    async def scenario(engine: Engine) -> None:
        engine.go_on.set()
        await engine.tell(Standing(TAG, 5))
        await engine.tell(Standing(TAG, 2))
        for epoch, status in ((4, 409), (5, 200), (6, 200)):
            assert (await engine.post(LEG, owner=f"{TAG}-{epoch}"))[0] == status
        assert (await engine.post(LEG, owner=f"{OTHER}-0"))[0] == 200
        body = (await engine.post(LEG, owner=f"{TAG}-4"))[1]
        assert json.loads(body)["error"]["code"] == "cache_flushed"

    run(scenario)


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("streams", [False, True])
def test_calls_of_an_epoch_that_is_over_are_ended_and_no_others(
    streams: bool, stubborn: bool
) -> None:
    async def scenario(engine: Engine) -> None:
        engine.streams, engine.stubborn = streams, stubborn
        await engine.tell(Standing(TAG, 1))
        claims = (f"{TAG}-1", f"{TAG}-2", f"{OTHER}-0")
        calls = [asyncio.ensure_future(engine.post(LEG, owner=claim)) for claim in claims]
        await turns()
        await engine.tell(Standing(TAG, 2))
        status, body = await calls[0]
        if streams:
            assert (status, body) == (200, b"one ...")
        else:
            assert (status, json.loads(body)["error"]["code"]) == (409, "cache_flushed")
        assert engine.seen == ["http.disconnect", *(["cancelled"] if stubborn else [])]
        assert [call.done() for call in calls[1:]] == [False, False]
        engine.go_on.set()
        whole = b"one vLLM's" if streams else b"vLLM's"
        assert [await call for call in calls[1:]] == [(200, whole)] * 2

    run(scenario)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[1]",
        b'[["x", 1, 0, 1]]',
        f'[["{TAG}", -1, 0, 1]]'.encode(),
        f'[["{TAG}", 1, 0, 2]]'.encode(),
        json.dumps([[TAG, 1, 0, 1]] * 65).encode(),
        b" " * 100_000,
    ],
)
def test_what_are_no_standings_change_nothing(body: bytes) -> None:
    async def scenario(engine: Engine) -> None:
        assert (await engine.post("/kvferry/tenancy", body))[0] == 400
        assert (await engine.post(LEG, owner=f"{TAG}-0"))[0] == 503
        assert engine.heard == []

    run(scenario)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/", "/v1/completions/"])
def test_a_worker_answers_nothing_that_nobody_needs(path: str) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.tell()
        assert (await engine.post(path, owner=f"{TAG}-0"))[0] == 404

    run(scenario)


def test_what_computes_nothing_needs_no_owner() -> None:
    async def scenario(engine: Engine) -> None:
        engine.go_on.set()
        assert (await engine.post("/v1/completions/render"))[0] == 200
        assert (await engine.post("/tokenize"))[0] == 200

    run(scenario)


def test_errands_go_on_until_nothing_is_left_to_overwrite() -> None:
    async def scenario(engine: Engine) -> None:
        engine.flushing = [2, 1, 0]
        await engine.tell(Standing(TAG, 1))
        await engine.tell(Standing(OTHER, 3))
        running = engine.gate._errands and engine.gate._errands._running
        assert running
        await running
        first, last = Standing(TAG, 1), Standing(OTHER, 3)
        told = [one for standings in engine.heard for one in standings]
        assert told == [first, last]
        assert len(engine.heard) >= 3
        await engine.tell(Standing(TAG, 2))

    run(scenario)


@pytest.mark.parametrize("status", [0, 500])
def test_an_errand_without_an_answer_is_sent_again_and_not_for_ever(status: int) -> None:
    async def scenario(engine: Engine) -> None:
        engine.errand_status = status
        await engine.tell(Standing(TAG, 1))
        running = engine.gate._errands and engine.gate._errands._running
        assert running
        await running
        assert set(engine.heard) == {(Standing(TAG, 1),)}
        assert len(engine.heard) > 2
        engine.errand_status = 200
        await engine.tell(Standing(OTHER, 1))
        await turns()
        assert engine.heard[-1] == (Standing(TAG, 1), Standing(OTHER, 1))

    run(scenario)


def test_many_standings_go_in_several_errands() -> None:
    async def scenario(engine: Engine) -> None:
        assert engine.gate._errands is not None
        many = [Standing(f"{number:016x}", 1) for number in range(150)]
        engine.gate._errands.send({"type": "http"}, many)
        assert engine.gate._errands._running
        await engine.gate._errands._running
        assert [len(standings) for standings in engine.heard] == [64, 64, 22]

    run(scenario)


def test_what_is_told_while_errands_fail_has_as_long_as_what_was_told_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errands, "GIVE_UP_SECONDS", 1.0)

    async def scenario(engine: Engine) -> None:
        assert engine.gate._errands is not None
        engine.errand_status = 500
        await engine.tell(Standing(TAG, 1))
        await asyncio.sleep(0.7)
        await engine.tell(Standing(OTHER, 1))
        await asyncio.sleep(0.4)
        engine.errand_status = 200
        assert engine.gate._errands._running
        await engine.gate._errands._running
        assert not engine.gate._errands._untaken

    run(scenario)


def test_an_engine_too_busy_to_answer_hears_all_that_does_not_fit_into_one_errand() -> None:
    async def scenario(engine: Engine) -> None:
        assert engine.gate._errands is not None
        engine.errand_status = 0
        many = [Standing(f"{number:016x}", 1) for number in range(150)]
        engine.gate._errands.send({"type": "http"}, many)
        assert engine.gate._errands._running
        await engine.gate._errands._running
        assert {one for standings in engine.heard for one in standings} == set(many)

    run(scenario)
