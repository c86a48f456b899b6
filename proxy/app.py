"""The HTTP routes. Thin: who calls, how long the body is, and the answer onto the wire."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from kvstore.cluster import Proxy, Tenant
from kvstore.credentials import TOKEN_HEADER
from kvstore.errors import ApiError
from kvstore.messages import ROLES
from proxy import faults
from proxy.catalogue import Served, catalogue
from proxy.jobs import Call
from proxy.loads import Places
from proxy.metrics import CLIENT_GONE, CONTENT_TYPE, Metrics, Story
from proxy.pipeline import Answer, Pipeline
from proxy.requests import AFFINITY_HEADER, ISOLATION_HEADER, PATHS, Asides, Route
from proxy.tenants import Tenants

log = logging.getLogger("kvferry.proxy")

BODY_SECONDS = 30.0
"""How long a client may take to send its body."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Api:
    """What the routes share. ``limits`` bound bodies, and how many are read at once."""

    def __init__(
        self, pipeline: Pipeline, tenants: Tenants, metrics: Metrics, limits: Proxy
    ) -> None:
        self._pipeline = pipeline
        self._tenants = tenants
        self._metrics = metrics
        self._body_bytes = limits.body_mib << 20
        self._reading = Places(limits.max_requests)
        self._since = int(time.time())

    async def generate(self, route: Route, request: Request) -> Response:
        """A completion of either kind."""
        request_id, arrived = secrets.token_hex(16), time.monotonic()
        try:
            tenant = self._tenant(request)
            with self._reading.one():
                body = await self._body(request)
        except ApiError as error:
            story = Story(request_id, "", route, arrived)
            story.status, story.reason = error.status, error.code or ""
            self._metrics.told(story)
            return refusal(error, request_id)
        explained = self._tenants.keyring.operator(request.headers.get(TOKEN_HEADER))
        call = Call(route, tenant, body, request_id, arrived, explained, _asides(request))
        return Answering(self._pipeline, self._tenants, call)

    async def explain(self, tenant: str, route: str, request: Request) -> Response:
        """What would be done with a request of ``tenant``, for operators."""
        request_id, arrived = secrets.token_hex(16), time.monotonic()
        try:
            known = self._tenants.keyring.named(tenant)
            if known is None or route not in PATHS:
                raise faults.not_explained(tenant, route)
            with self._reading.one():
                body = await self._body(request)
            call = Call(route, known, body, request_id, arrived, asides=_asides(request))
            return json_reply(await self._pipeline.explain(call))
        except ApiError as error:
            return refusal(error, request_id)

    def models(self, request: Request) -> Response:
        """The models that live workers serve, and the adapters, which have a ``parent``."""
        try:
            self._tenant(request)
        except ApiError as error:
            return refusal(error, secrets.token_hex(16))
        live = [self._pipeline.live(role) for role in ROLES]
        models = {served.name: served for served in catalogue(*live).values()}
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self._since,
                "owned_by": "kvferry",
                "root": served.base,
                "parent": served.parent,
                "max_model_len": min(
                    one.max_model_len for known in live for one in known if served.by(one)
                ),
            }
            for name, served in sorted(models.items(), key=_bases_first)
        ]
        return json_reply({"object": "list", "data": cards})

    def ready(self) -> Response:
        """200 when a decode worker can serve; the counts of ready workers either way."""
        prefill, decode = self._counts()
        counts = {"ready": decode > 0, "prefill": prefill, "decode": decode}
        headers = {} if decode else {"retry-after": str(faults.RETRY_SECONDS)}
        return json_reply(counts, 200 if decode else 503, headers)

    def metrics(self) -> Response:
        """Prometheus exposition."""
        told = self._metrics.exposition(*self._counts(), self._pipeline.waiting)
        return Response(told, media_type=CONTENT_TYPE)

    def _counts(self) -> tuple[int, int]:
        ready = {
            role: sum(worker.state == "ready" for worker in self._pipeline.live(role))
            for role in ROLES
        }
        return ready["prefill"], ready["decode"]

    def _tenant(self, request: Request) -> Tenant:
        tenant = self._tenants.keyring.tenant(request.headers.get("authorization"))
        if tenant is None:
            raise faults.unauthorized()
        return tenant

    async def _body(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._whole(request)
        except TimeoutError:
            raise ApiError(408, "The body took too long.", code="request_timeout") from None
        except ClientDisconnect:
            raise ApiError(CLIENT_GONE, "The client left.", code="client_gone") from None

    async def _whole(self, request: Request) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > self._body_bytes:
                raise self._too_large()
            parts.append(part)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"The body exceeds {self._body_bytes} bytes.", code="request_too_large"
        )


class Answering(Response):
    """One call on the wire: ends the work as soon as the client is gone, streaming or not."""

    def __init__(self, pipeline: Pipeline, tenants: Tenants, call: Call) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._tenants = tenants
        self._call = call
        self._started = False
        self._complete = False
        self._flushed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._work(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))

        def flush() -> None:
            self._flushed = not self._complete
            if self._flushed:
                work.cancel(faults.FLUSHED)

        try:
            with self._tenants.one(self._call.tenant, flush):
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if self._complete:  # what is left is to put things away
                    await asyncio.wait({work})
            if self._flushed and not gone.done():
                await self._fail(faults.flushed(), (scope, receive, send))
        except ApiError as error:
            work.cancel()
            await self._fail(error, (scope, receive, send))
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.wait({work, gone})

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing escapes but cancellation: a failure here ends this one request."""
        try:
            async with self._pipeline.answer(self._call) as answer:
                self._started = True
                await self._send(answer, send)
        except ApiError as error:
            await self._fail(error, (scope, receive, send))
        except Exception as error:  # noqa: BLE001 (the outermost loop of a request)
            # The place, never the message or a traceback's values: they might quote a prompt.
            log.error("request=%s failed: %s", self._call.request_id, _place(error))  # noqa: TRY400
            await self._fail(faults.internal(), (scope, receive, send))

    async def _send(self, answer: Answer, send: Send) -> None:
        headers = {
            **answer.headers,
            "content-type": answer.content_type,
            "x-request-id": self._call.request_id,
        }
        if isinstance(answer.content, bytes):
            headers["content-length"] = str(len(answer.content))
            await send(_start(200, headers))
            await self._last(answer.content, send)
            return
        headers["cache-control"] = "no-cache"
        await send(_start(200, headers))
        async with aclosing(_generator(answer.content)) as pieces:
            async for piece in pieces:
                await send(_piece(piece, more=True))
        await self._last(b"", send)

    async def _last(self, body: bytes, send: Send) -> None:
        # From here on the server reports the client as gone, whether it is or not.
        self._complete = True
        await send(_piece(body, more=False))

    async def _fail(self, error: ApiError, wire: tuple[Scope, Receive, Send]) -> None:
        if not self._started:
            self._complete = True
            await refusal(error, self._call.request_id)(*wire)
            return
        send = wire[2]
        await send(_piece(faults.event(error), more=True))
        await self._last(b"", send)


def create(api: Api, lifespan: Lifespan) -> FastAPI:
    """The application. ``lifespan`` brings its parts up and down."""
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await api.generate("chat", request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await api.generate("completions", request)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return api.models(request)

    @app.get("/health")
    async def health() -> Response:
        return json_reply({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        return api.ready()

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        fault = ApiError(error.status_code, f"{error.detail}.")
        return refusal(fault, secrets.token_hex(16))

    return app


def refusal(error: ApiError, request_id: str) -> Response:
    """``error`` as an HTTP response."""
    headers = {"x-request-id": request_id}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in {408, 413}:
        headers["connection"] = "close"  # the rest of the body is not read
    return Response(faults.body(error), error.status, headers, "application/json")


def _asides(request: Request) -> Asides:
    """Of a header that came several times, all values: none of them is overlooked."""
    names = (AFFINITY_HEADER, ISOLATION_HEADER, "cache-control")
    told = (request.headers.getlist(name) for name in names)
    return Asides(*(", ".join(values) if values else None for values in told))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _generator(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    async for piece in pieces:
        yield piece


def json_reply(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """``value`` as a JSON answer."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _start(status: int, headers: Mapping[str, str]) -> dict[str, Any]:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


def _piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {where}"


def _bases_first(named: tuple[str, Served]) -> tuple[bool, str]:
    name, served = named
    return served.parent is not None, name
