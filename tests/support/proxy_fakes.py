"""A worker that speaks vLLM's HTTP surface on a Unix socket, and a proxy in front of a few."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from kvstore.blockhash import block_chain, block_names
from kvstore.cluster import Dram, Proxy, Ship, Tenant
from kvstore.credentials import TOKEN_HEADER
from kvstore.engagements import Engagements
from kvstore.index import Directory
from kvstore.messages import (
    PROTOCOL_VERSION,
    Announce,
    Role,
    ServedAdapter,
    Snapshot,
    Standing,
    TenantMessage,
    Tier,
)
from kvstore.salts import Scope, salt
from kvstore.tenant_feed import TenantFeed
from kvstore.text_rules import TEXT_RULES_PATH
from proxy.admin import Admin, create_admin
from proxy.app import Api, create
from proxy.catalogue import Served
from proxy.learning import Learner
from proxy.metrics import Metrics
from proxy.pipeline import Parts, Pipeline, Settings
from proxy.remembered import Remembered
from proxy.render import Renderer
from proxy.render_counts import RenderCounts
from proxy.tenant_metrics import TenantMemory
from proxy.tenants import Tenants
from proxy.upstream import Upstream

MODEL = "tiny"
TOKEN = "cluster-token"
KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}
BLOCK = 16
CHUNK = 2 * BLOCK
PROMPT_TOKENS = 100
TEXTS = ["Paris", " is", " the", " capital", "."]
SALT_KEY = b"s" * 32


@dataclass
class Seen:
    """A request as the worker got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float


@dataclass
class Worker:
    """Behaviour of a fake worker; the defaults are those of a healthy one."""

    name: str
    role: Role
    http: str
    tokens: list[int] = field(default_factory=lambda: list(range(PROMPT_TOKENS)))
    text_rules: bytes | None = None
    rendering: Callable[[str, dict[str, Any]], list[int] | None] | None = None
    cached: int = 0
    outcome: dict[str, Any] | None = None
    times: dict[str, float] | None = None
    report: dict[str, Any] | None = None
    refusal: tuple[int, dict[str, Any]] | None = None
    render_refusal: tuple[int, dict[str, Any]] | None = None
    judge: Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]] | None] | None = None
    computing: Callable[[dict[str, Any]], None] | None = None
    texts: list[str] = field(default_factory=lambda: list(TEXTS))
    error_after: int | None = None
    drop_before: bool = False
    drop_after: int | None = None
    hold: asyncio.Event | None = None
    hold_render: asyncio.Event | None = None
    hold_after: int | None = None
    length: int = 9000
    state: str = "ready"
    generation: str = ""
    block_size: int = BLOCK
    fingerprint: str = "f" * 64
    adapters: tuple[ServedAdapter, ...] = ()
    seen: list[Seen] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def announce(self) -> Announce:
        return Announce(
            version=PROTOCOL_VERSION,
            worker=self.name,
            role=self.role,
            generation=self.generation or f"gen-{self.name}",
            state=self.state,  # type: ignore[arg-type]
            model=MODEL,
            http=self.http,
            ship=f"zmq+ipc:///ship/{self.name}",
            fingerprint=self.fingerprint,
            block_size=self.block_size,
            max_model_len=8192,
            capacity_blocks=1000,
            seq=0,
            adapters=self.adapters,
        )

    def of(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]

    @property
    def generated(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path.endswith("completions")]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.method == "POST" else {}
        now = asyncio.get_running_loop().time()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.path, headers, body, now))
        assert headers["x-kvferry-token"] == TOKEN
        if request.path.startswith("/kvferry/abandon/"):
            return self._abandon(request.path.rsplit("/", 1)[1])
        if request.path == TEXT_RULES_PATH:
            told = self.text_rules
            return web.Response(body=told or b"{}", status=200 if told else 404)
        judged = self.judge(request.path, body) if self.judge else None
        if judged is not None:
            return web.json_response(judged[1], status=judged[0])
        if request.path.endswith("/render"):
            if self.hold_render is not None:
                await self.hold_render.wait()
            return self._render(request.path, body)
        if request.path == "/tokenize":
            fields = {"count": self.length, "max_model_len": 8192, "tokens": []}
            return web.json_response(fields)
        self.arrived.set()
        try:
            return await self._generate(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted.set()
            raise

    def _abandon(self, transfer: str) -> web.Response:
        self.abandoned.append(transfer)
        if self.hold is not None:
            self.outcome = outcome(shipped=False, reason="abandoned")
            self.hold.set()
        return web.json_response({}, status=202)

    def _render(self, path: str, body: dict[str, Any]) -> web.Response:
        tokens = self.tokens if self.rendering is None else self.rendering(path, body)
        if tokens is None:
            return web.json_response({"error": {"message": "refused"}}, status=400)
        if self.render_refusal is not None:
            status, fields = self.render_refusal
            return web.json_response(fields, status=status)
        rendered: dict[str, Any] = {
            "token_ids": tokens,
            "features": None,
            "sampling_params": {},
        }
        return web.json_response(rendered if "chat" in path else [rendered])

    async def _generate(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.hold is not None:
            await self.hold.wait()
        if self.computing is not None:
            self.computing(body)
        if self.drop_before:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        if self.refusal is not None:
            status, fields = self.refusal
            return web.json_response(fields, status=status)
        headers = {}
        if self.outcome is not None:
            transfer = request.headers.get("x-kvferry-transfer", "0" * 32)
            headers["x-kvferry-outcome"] = json.dumps({**self.outcome, "transfer": transfer})
        if self.times is not None:
            headers["x-kvferry-times"] = json.dumps(self.times)
        if body.get("stream"):
            return await self._stream(request, body, headers)
        chat = "chat" in request.path
        text = "".join(self.texts)
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return web.json_response(
            {
                "id": "cmpl-1",
                "model": body.get("model", MODEL),
                "choices": [{"index": 0, "finish_reason": "stop", **choice}],
                "usage": self._usage(),
                "kv_transfer_params": {"kvferry": self.report} if self.report else None,
            },
            headers=headers,
        )

    async def _stream(
        self, request: web.Request, body: dict[str, Any], headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
        await response.prepare(request)
        for index, text in enumerate(self.texts):
            if index == self.hold_after:
                await asyncio.Event().wait()
            if index == self.drop_after:
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError
            if index == self.error_after:
                error = {"message": "boom", "type": "InternalServerError", "code": 500}
                await response.write(_event({"error": error}))
                await response.write(b"data: [DONE]\n\n")
                return response
            delta = {"delta": {"content": text}} if "chat" in request.path else {"text": text}
            await response.write(_event({"id": "1", "choices": [{"index": 0, **delta}]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(_event({"id": "1", "choices": [], "usage": self._usage()}))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _usage(self) -> dict[str, Any]:
        prompt = len(self.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": len(self.texts),
            "total_tokens": prompt + len(self.texts),
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def outcome(*, shipped: bool = True, local: int = 0, reason: str | None = None) -> dict[str, Any]:
    received = PROMPT_TOKENS - local if shipped else 0
    return {
        "type": "Outcome",
        "shipped": shipped,
        "local_tokens": local,
        "received_tokens": received,
        "received_bytes": received * 100,
        "wait_ms": 1.5,
        "reason": reason,
    }


class LiveDirectory(Directory):
    """A real one that hears of whoever a test has in ``live``, as that is now."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        super().__init__(lease_seconds=1.0)
        self.live = list(workers)
        self._rounds = itertools.count(step=10)

    @property
    def membership(self) -> int:
        self.expire(0.0)
        return super().membership

    def workers(self, role: Role) -> list[Announce]:
        self.expire(0.0)
        return super().workers(role)

    def expire(self, now: float) -> list[str]:
        now = next(self._rounds)
        for worker in self.live:
            self.apply(worker.announce(), now)
        return super().expire(now)

    def holds(
        self,
        worker: Worker,
        blocks: int,
        tier: Tier = "gpu",
        tenant: str = "alice",
        adapter: ServedAdapter | None = None,
    ) -> None:
        """So many of the first blocks of the tenant's prompt, computed by ``adapter``."""
        served = Served(MODEL, adapter)
        scoped = salt(SALT_KEY, served.within(Scope(tenant, 0)))
        chain = block_chain(worker.tokens, BLOCK, scoped, served.lora)
        held = b"".join(block_names(chain)[:blocks])
        self.expire(0.0)
        generation = worker.announce().generation
        self.apply(Snapshot(worker.name, generation, next(self._rounds), 0, 1, tier, held), 0.0)


class FakeFeed:
    """What is said to workers, and by them where a test lets them."""

    def __init__(self) -> None:
        self.tenants = TenantFeed()
        self.said: list[Standing] = []
        self._news = asyncio.Event()

    def say(self, standings: Iterable[Standing]) -> None:
        known = list(standings)
        self.tenants.say(known)
        self.said += known

    async def news(self) -> None:
        await self._news.wait()

    def hear(self, *messages: TenantMessage) -> None:
        for message in messages:
            self.tenants.hear(message)
        self._news.set()
        self._news.clear()


class NoPeers:
    """There is only one proxy, unless a test says otherwise."""

    def __init__(self) -> None:
        self.engagements = Engagements()
        self.told: list[tuple[str, int, float]] = []

    def tell(self, worker: Announce, prompts: int, seconds: float) -> None:
        self.told.append((worker.worker, prompts, seconds))


@dataclass
class Stage:
    """A running proxy, its fake workers, and a client."""

    url: str
    session: aiohttp.ClientSession
    prefill: list[Worker]
    decode: list[Worker]
    directory: LiveDirectory
    pipeline: Pipeline
    learner: Learner
    admin_url: str
    tenants: Tenants
    said: FakeFeed

    @property
    def p(self) -> Worker:
        return self.prefill[0]

    @property
    def d(self) -> Worker:
        return self.decode[0]

    def post(self, body: Any, route: str = "chat", key: str = "alice", **options: Any) -> Any:
        path = "/v1/chat/completions" if route == "chat" else "/v1/completions"
        headers = {"authorization": f"Bearer {KEYS.get(key, key)}", **options.pop("headers", {})}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.session.post(self.url + path, data=raw, headers=headers, **options)

    def operator(self, method: str, path: str, **options: Any) -> Any:
        headers = {TOKEN_HEADER: TOKEN, **options.pop("headers", {})}
        return self.session.request(method, self.admin_url + path, headers=headers, **options)

    async def counted(self, text: str) -> None:
        """Waits until the metrics hold ``text``: they are written after the last byte."""
        counters = ""
        async with asyncio.timeout(5):
            while text not in counters:
                async with self.operator("GET", "/metrics") as reply:
                    counters = await reply.text()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", **fields}


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the test runner's signals stay its own


@asynccontextmanager
async def stage(
    tmp_path: Path, prefill: int = 1, decode: int = 1, **settings: Any
) -> AsyncIterator[Stage]:
    """A proxy on a free port with ``prefill`` and ``decode`` fake workers."""
    async with contextlib.AsyncExitStack() as stack:
        fleet: dict[Role, list[Worker]] = {"prefill": [], "decode": []}
        for role, count in (("prefill", prefill), ("decode", decode)):
            for index in range(count):
                path = tmp_path / f"{role}-{index}"
                worker = Worker(f"{role}-{index}", role, f"unix:{path}")  # type: ignore[arg-type]
                if role == "decode":
                    worker.outcome = outcome()
                    worker.cached = PROMPT_TOKENS - 1
                await stack.enter_async_context(_listening(worker, path))
                fleet[worker.role].append(worker)
        directory = LiveDirectory([*fleet["prefill"], *fleet["decode"]])
        proxy = Proxy(**{"request_seconds": 20.0, "body_mib": 1, **settings})
        upstream = Upstream(TOKEN, proxy.connect_seconds, 100)
        metrics = Metrics()
        remembered = Remembered(1 << 20, 1 << 20)
        learner = Learner(upstream, lambda: directory.workers("decode"), remembered.forget)
        counts = RenderCounts(metrics.registry, lambda: remembered.size)
        renderer = Renderer(upstream, learner, remembered, counts)
        stack.callback(renderer.close)
        kept = Settings(proxy, Ship(), SALT_KEY, Dram(chunk_tokens=CHUNK))
        parts = Parts(directory, NoPeers(), upstream, metrics, renderer)
        pipeline = Pipeline(kept, parts)
        tenants = [
            Tenant(name=name, keys_sha256=(hashlib.sha256(key.encode()).hexdigest(),))
            for name, key in KEYS.items()
        ]
        said = FakeFeed()
        callers = Tenants(tenants, TOKEN, SALT_KEY, said, pipeline.forget_tenant)
        said.tenants = TenantFeed(callers.raised)
        metrics.registry.register(TenantMemory(said.tenants, callers.named))
        api = Api(pipeline, callers, metrics, proxy)
        admin = Admin(api, callers, said, directory.workers, dram=True)

        @asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            async with upstream:
                yield

        public, operators = create(api, lifespan), create_admin(admin, api)
        url = await stack.enter_async_context(_serving(public))
        admin_url = await stack.enter_async_context(_serving(operators))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Stage(
            url,
            session,
            fleet["prefill"],
            fleet["decode"],
            directory,
            pipeline,
            learner,
            admin_url,
            callers,
            said,
        )
        await session.close()
        await until(lambda: not pipeline.loads.counts)
        pipeline.check()


@asynccontextmanager
async def _listening(worker: Worker, path: Path) -> AsyncIterator[None]:
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{tail:.*}", worker.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _serving(app: FastAPI) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for ``condition``; fails the test if it does not come true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Runs one asynchronous test, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def events(raw: bytes) -> list[Any]:
    """The payloads of an event stream; "[DONE]" as that string."""
    payloads = [part.removeprefix(b"data: ") for part in raw.split(b"\n\n") if part]
    return ["[DONE]" if part == b"[DONE]" else json.loads(part) for part in payloads]
