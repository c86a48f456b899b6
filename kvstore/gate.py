"""The ASGI middleware in front of a worker's vLLM server.

It lets only kvferry's own proxies in, and of what they call only what they need, and tells them how
the engine turns text into tokens. The worker's supervisor tells it what holds for tenants: calls of
epochs that are over it refuses and ends (:mod:`kvstore.admission`), and has the engine's scheduler
half hear of them (:mod:`kvstore.errands`). What a leg is told beyond vLLM's answer is its role's
(``prefill.gate``, ``decode.gate``). vLLM loads it by name (``--middleware``) and gives it nothing,
so it finds its settings where vLLM keeps the connector's.
"""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path
from typing import Annotated

import msgspec

from kvstore.admission import COMPUTING_PATHS, FLUSHED, PASSED_PATHS, Admission, Refusal
from kvstore.cluster import WorkerSettings
from kvstore.credentials import TOKEN_HEADER, load_or_create
from kvstore.engine_facts import text_rules_of, worker_settings
from kvstore.errands import Errands
from kvstore.errors import WireError
from kvstore.exchange import App, Exchange, Receive, Scope, Send, finish
from kvstore.messages import Standing
from kvstore.salts import OWNER_HEADER
from kvstore.standings import PART, TENANCY_PATH
from kvstore.text_rules import TEXT_RULES_PATH

TRANSFER_HEADER = b"x-kvferry-transfer"

_OPEN_PATHS = frozenset({"/health"})
_OWN_PATHS = "/kvferry/"
_OWNER_HEADER = OWNER_HEADER.encode()
_MAX_TENANCY_BYTES = 16 << 10

_Standings = Annotated[tuple[Standing, ...], msgspec.Meta(max_length=PART)]


class Gate:
    """The middleware; one per worker's API process. A role says what else it does."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._token = b""
        self._is_open = False
        self._text_rules: bytes | None = None
        self._admission = Admission()
        self._errands: Errands | None = None

    def listen(self, settings: WorkerSettings) -> None:
        """Begin to listen to the worker's connectors, on the running event loop."""
        raise NotImplementedError

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call that is let through."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "lifespan"}:
            return  # Nothing of ours speaks anything but HTTP; a websocket would come in unasked.
        if not self._is_open:
            self._open(scope)
        if scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
        elif not self._admits(dict(scope["headers"])):
            await answer(send, 401, b'{"error":"only this cluster\'s proxies may call a worker"}')
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path in COMPUTING_PATHS:
            await self._serve_leg(scope, receive, send)
        elif path == TEXT_RULES_PATH:
            await self._tell_text_rules(scope, send)
        elif path == TENANCY_PATH:
            await self._take_tenancy(scope, receive, send)
        elif path in PASSED_PATHS or path.startswith(_OWN_PATHS):
            await self.serve(scope, receive, send)
        else:
            await answer(send, 404, b'{"error":"a worker does not answer that"}')

    async def _serve_leg(self, scope: Scope, receive: Receive, send: Send) -> None:
        claim = dict(scope["headers"]).get(_OWNER_HEADER, b"").decode("latin-1")
        owner = self._admission.admit(claim)
        if isinstance(owner, Refusal):
            await refuse(send, owner)
            return
        exchange = Exchange(receive, send)
        number = self._admission.enter(owner, exchange.end)
        try:
            await self._serve_until_ended(scope, exchange, send)
        finally:
            self._admission.leave(owner, number)

    async def _serve_until_ended(self, scope: Scope, exchange: Exchange, send: Send) -> None:
        """Where it is ended and has been answered in part, it is left at that: the call breaks."""
        serving = asyncio.ensure_future(self.serve(scope, exchange.receive, exchange.send))
        ended = asyncio.create_task(exchange.wait_ended())
        try:
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
                return
            if not exchange.answered:
                await refuse(send, FLUSHED)
            await finish(serving)
        finally:
            ended.cancel()
            serving.cancel()
            await asyncio.wait({serving})

    async def _take_tenancy(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._errands is not None
        try:
            standings = msgspec.json.decode(await _body(receive), type=_Standings)
            self._admission.tell(standings)
        except (msgspec.DecodeError, WireError) as error:
            await refuse(send, Refusal(400, f"not a list of standings that can hold: {error}"))
            return
        self._errands.send(scope, standings)
        await answer(send, 200, b"{}")

    def _open(self, scope: Scope) -> None:
        """Read the settings off the application and begin to listen to the connector."""
        args = scope["app"].state.args
        settings = worker_settings(args.kv_transfer_config.kv_connector_extra_config)
        self._token = load_or_create(Path(settings.state_dir)).http_token().encode()
        self._errands = Errands(self._app, settings.model_name)
        self.listen(settings)
        self._is_open = True

    async def _tell_text_rules(self, scope: Scope, send: Send) -> None:
        if self._text_rules is None:
            # Kept, some megabytes: writing it out stops all else for up to half a second, so that
            # is best done when the first proxy asks, which is before the first client does.
            rules = await asyncio.to_thread(text_rules_of, scope["app"].state)
            self._text_rules = b"" if rules is None else msgspec.json.encode(rules)
        if self._text_rules:
            await answer(send, 200, self._text_rules)
        else:
            await answer(send, 404, b'{"error":"this tokenizer cannot be told"}')

    def _admits(self, headers: dict[bytes, bytes]) -> bool:
        return hmac.compare_digest(headers.get(TOKEN_HEADER.encode(), b""), self._token)


def named_transfer(scope: Scope) -> bytes | None:
    """The transfer that a call's header names; None where it names none."""
    headers = dict(scope["headers"])
    return parsed_transfer(headers.get(TRANSFER_HEADER, b"").decode("latin-1"))


def parsed_transfer(text: str) -> bytes | None:
    """A transfer from its hex digits; None where it is none."""
    try:
        transfer = bytes.fromhex(text)
    except ValueError:
        return None
    return transfer if len(transfer) == 16 else None


async def _body(receive: Receive) -> bytes:
    """What was sent with a call. Raises WireError where it is too long."""
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
        if len(body) > _MAX_TENANCY_BYTES:
            raise WireError("too long")
    return body


async def refuse(send: Send, refusal: Refusal) -> None:
    """A whole JSON answer that says why."""
    fields = {"message": refusal.message, "code": refusal.code}
    await answer(send, refusal.status, msgspec.json.encode({"error": fields}))


async def answer(send: Send, status: int, body: bytes) -> None:
    """A whole JSON answer."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
