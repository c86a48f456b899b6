"""A stub worker: no engine, but all that a proxy of kvferry's or another router asks of one.

A router that does not show kvferry's token is served as by stock vLLM: two legs one after the
other, and no rendering (403, as without ``--enable-scale-out``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from bench.routing import answers
from bench.routing.feeds import Feed
from bench.routing.holdings import Chains, Holding
from bench.routing.rendering import Renderer
from bench.stub import wire
from bench.stub.connection import Connection
from kvstore.messages import Role

_TOKEN = b"x-kvferry-token"
_TRANSFER = b"x-kvferry-transfer"
_CHATS = {b"/v1/completions": False, b"/v1/chat/completions": True}
_RENDER = b"/render"
_PLAIN = {(b"GET", b"/health"), (b"GET", b"/metrics")}
_RULES = b"/kvferry/tokenizer"
_ABANDON = b"/kvferry/abandon/"
_MOST_TRANSFERS = 4096

# Within a JSON string quotes are escaped: no prompt looks like a ticket.
_FETCH = b'"type":"fetch"'
_HELD = re.compile(rb'"held":(\d+)')
_TICKET_BYTES = 512
"""At the end of a prefill leg's body: all else in it is tokens."""


class _Params(msgspec.Struct):
    prompt_token_ids: list[int] | None = None


class _Leg(msgspec.Struct):
    cache_salt: str
    prompt: list[int] | None = None
    kv_transfer_params: _Params = msgspec.field(default_factory=_Params)


@dataclass
class _Transfer:
    """``arrive``: what waits for the prefill leg, as long as whoever asked does. ``decode`` holds
    its prompt in the end.
    """

    prefilled: bool = False
    names: list[bytes] | None = None
    arrive: Callable[[answers.Fate], None] | None = None
    decode: Worker | None = None


class Host:
    """What the stub workers of one process share. ``token``: the cluster's own."""

    def __init__(
        self, model: str, tokens: int, block_size: int, token: str, renderer: Renderer
    ) -> None:
        self.token = token
        self.renderer = renderer
        self.chains = Chains(block_size)
        self.streams = {chat: answers.Stream(chat, model, tokens) for chat in (False, True)}
        self._model = model
        self.for_pull = {chat: answers.prefilled_for_pull(chat, model) for chat in (False, True)}
        self._transfers: dict[str, _Transfer] = {}

    def prefilled(self, chat: bool, body: bytes) -> bytes:
        """The answer to a prefill leg, which is believed as to what is held of its prompt."""
        ticket = _HELD.search(body, max(0, len(body) - _TICKET_BYTES))
        return answers.prefilled(chat, self._model, int(ticket[1]) if ticket else 0)

    def transfer(self, name: str) -> _Transfer:
        """What is known of one; the oldest is forgotten where there are too many."""
        found = self._transfers.get(name)
        if found is None:
            if len(self._transfers) >= _MOST_TRANSFERS:
                del self._transfers[next(iter(self._transfers))]
            found = self._transfers[name] = _Transfer()
        return found

    def abandoned(self, name: str) -> None:
        """Its prefill leg will not come: decode waits no more."""
        found = self._transfers.pop(name, None)
        if found is not None and found.arrive is not None and not found.prefilled:
            found.arrive("abandoned")

    def settle(self, name: str) -> None:
        """Once both legs have come and the prompt is known, decode holds it too."""
        found = self._transfers.get(name)
        if found is not None and found.decode is not None and found.names is not None:
            del self._transfers[name]
            found.decode.hold(found.names)


@dataclass
class Worker:
    """One stub worker."""

    role: Role
    host: Host
    feed: Feed
    holding: Holding
    connections: set[Connection] = field(default_factory=set)

    def hold(self, names: list[bytes]) -> None:
        """It computed or received a prompt."""
        self.feed.changed(*self.holding.keep(names))

    def learn(self, body: bytes) -> list[bytes]:
        """The names of a leg's prompt; read after the answer, which does not need them."""
        leg = msgspec.json.decode(body, type=_Leg)
        tokens = leg.prompt or leg.kv_transfer_params.prompt_token_ids or []
        return self.host.chains.names(tokens, leg.cache_salt)


class Asker(Connection):
    """A router's connection to a worker."""

    heeded = frozenset({_TOKEN, _TRANSFER})

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.connections)
        self._worker = worker
        self._host = worker.host

    def asked(self, method: bytes, path: bytes, headers: Mapping[bytes, str], body: bytes) -> None:
        """See Connection."""
        ours = headers.get(_TOKEN) == self._host.token
        chat = _CHATS.get(path)
        if chat is not None:
            transfer = headers.get(_TRANSFER, "") if ours else ""
            leg = self._prefill if self._worker.role == "prefill" else self._decode
            leg(chat, transfer, body)
        elif path.endswith(_RENDER):
            self._render(path.removesuffix(_RENDER), ours, body)
        elif path.startswith(_ABANDON):
            self._host.abandoned(path.removeprefix(_ABANDON).decode("latin-1"))
            self.answer(wire.whole(200, b"{}"))
        elif path == _RULES and ours:
            self.answer(wire.whole(200, self._host.renderer.rules))
        elif (method, path) in _PLAIN:
            self.answer(wire.whole(200, b"{}"))
        else:
            self.answer(wire.refusal(404, "no such path"))

    def _render(self, path: bytes, ours: bool, body: bytes) -> None:
        if not ours:
            self.answer(wire.refusal(403, "not served"))
        elif path not in _CHATS:
            self.answer(wire.refusal(404, "no such path"))
        else:
            self.answer(wire.whole(200, self._host.renderer.rendered(_CHATS[path], body)))

    def _prefill(self, chat: bool, name: str, body: bytes) -> None:
        if not name:
            self.answer(self._host.for_pull[chat])
            return
        self.answer(self._host.prefilled(chat, body))
        transfer = self._host.transfer(name)
        transfer.prefilled = True
        if transfer.arrive is not None:
            transfer.arrive("fetched")

        def learn() -> None:
            transfer.names = self._worker.learn(body)
            self._worker.hold(transfer.names)
            self._host.settle(name)

        asyncio.get_running_loop().call_soon(learn)

    def _decode(self, chat: bool, name: str, body: bytes) -> None:
        stream = self._host.streams[chat]
        if not name:
            self._stream(stream.plain, stream.rest)
        elif _FETCH not in body:
            self._stream(stream.told(name, "nothing to fetch"), stream.rest)
            worker = self._worker
            asyncio.get_running_loop().call_soon(lambda: worker.hold(worker.learn(body)))
        else:
            transfer = self._host.transfer(name)
            transfer.decode = self._worker

            def arrive(fate: answers.Fate) -> None:
                self._stream(stream.told(name, fate), stream.rest)

            if transfer.prefilled:
                arrive("fetched")
                self._host.settle(name)
            else:
                transfer.arrive = arrive

    def _stream(self, first: bytes, rest: bytes) -> None:
        self.write(first)
        asyncio.get_running_loop().call_soon(self._end, rest)

    def _end(self, rest: bytes) -> None:
        self.answer(rest)
