"""A stub worker: no engine, but all that a proxy of kvferry's or another router asks of one.

A router that does not show kvferry's token is served as by stock vLLM: two legs one after the
other, and no rendering (403, as without ``--enable-scale-out``).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from bench.routing import answers
from bench.routing.feeds import Feed
from bench.routing.holdings import Chains, Holding
from bench.routing.rendering import Renderer
from bench.routing.tally import TALLY, Tally, found
from bench.stub import wire
from bench.stub.connection import Connection
from kvstore.curves import PrefillCurve
from kvstore.messages import Role

CURVE = PrefillCurve(0.02, 60e-6, 0.0)
"""How long workers take, or say that they took: as a small engine would."""

_TOKEN = b"x-kvferry-token"
_TRANSFER = b"x-kvferry-transfer"
_CHATS = {b"/v1/completions": False, b"/v1/chat/completions": True}
_RENDER = b"/render"
_PLAIN = {(b"GET", b"/health"), (b"GET", b"/metrics")}
_RULES = b"/kvferry/tokenizer"
_ABANDON = b"/kvferry/abandon/"
_TALLY = TALLY.encode()
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


@dataclass(frozen=True)
class Computing:
    """Workers take as long for a prompt as ``curve`` says, one after the other, and ``tally`` is
    told what they held of it.
    """

    curve: PrefillCurve
    tally: Tally


@dataclass(frozen=True)
class Computed:
    """A prompt's ``names``, the tokens of it that were ``held``, and when the rest is done:
    ``after`` so many seconds, of which computing takes ``seconds``.
    """

    names: list[bytes]
    held: int
    seconds: float
    after: float


class Host:
    """What the stub workers of one process share. ``token``: the cluster's own. Without
    ``computing`` they answer at once, and believe who asks as to what they hold.
    """

    def __init__(
        self,
        model: str,
        tokens: int,
        block_size: int,
        token: str,
        renderer: Renderer,
        computing: Computing | None = None,
    ) -> None:
        self.token = token
        self.computing = computing
        self.block_size = block_size
        self.renderer = renderer
        self.chains = Chains(block_size)
        self.streams = {chat: answers.Stream(chat, model, tokens) for chat in (False, True)}
        self._model = model
        self.for_pull = {chat: answers.prefilled_for_pull(chat, model) for chat in (False, True)}
        self._transfers: dict[str, _Transfer] = {}

    def prefilled(self, chat: bool, body: bytes) -> bytes:
        """The answer to a prefill leg, which is believed as to what is held of its prompt.

        It tells the time that an engine would have taken, from which routers learn.
        """
        ticket = _HELD.search(body, max(0, len(body) - _TICKET_BYTES))
        held = int(ticket[1]) if ticket else 0
        new = max(1, body.count(b",") - held)  # all but a few stand between tokens
        seconds = CURVE.seconds(float(new), float(held))
        return answers.prefilled(chat, self._model, held, seconds * 1000)

    def computed(self, chat: bool, work: Computed) -> bytes:
        """The answer to a prefill leg, as it was."""
        return answers.prefilled(chat, self._model, work.held, work.seconds * 1000)

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
    free_at: float = 0.0

    def hold(self, names: list[bytes]) -> None:
        """It computed or received a prompt."""
        self.feed.changed(*self.holding.keep(names))

    def learn(self, body: bytes) -> list[bytes]:
        """The names of a leg's prompt; read after the answer, which does not need them."""
        return self._prompt(body)[1]

    def compute(self, body: bytes, computing: Computing) -> Computed:
        """It takes a leg's prompt up, and is busy with it; to be held when it is done."""
        tokens, names = self._prompt(body)
        size, now = self.host.block_size, time.monotonic()
        held = found(self.holding, names, len(tokens), size)
        computing.tally.computed(names, len(tokens), held, size)
        seconds = computing.curve.seconds(float(len(tokens) - held), float(held))
        self.free_at = max(now, self.free_at) + seconds
        return Computed(names, held, seconds, self.free_at - now)

    def _prompt(self, body: bytes) -> tuple[Sequence[int], list[bytes]]:
        leg = msgspec.json.decode(body, type=_Leg)
        tokens = leg.prompt or leg.kv_transfer_params.prompt_token_ids or []
        return tokens, self.host.chains.names(tokens, leg.cache_salt)


class Asker(Connection):
    """A router's connection to a worker."""

    heeded = frozenset({_TOKEN, _TRANSFER})

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.connections)
        self._worker = worker
        self._host = worker.host

    def write(self, content: bytes) -> None:
        """See Connection; a router that is gone is told nothing any more."""
        if self.transport is not None and not self.transport.is_closing():
            super().write(content)

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
        elif path == _TALLY and self._host.computing is not None:
            told = self._host.computing.tally.told(time.monotonic())
            self.answer(wire.whole(200, told))
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
        transfer = self._host.transfer(name)
        loop = asyncio.get_running_loop()

        def done(answer: bytes) -> None:
            self.answer(answer)
            transfer.prefilled = True
            if transfer.arrive is not None:
                transfer.arrive("fetched")

        def hold(names: list[bytes]) -> None:
            transfer.names = names
            self._worker.hold(names)
            self._host.settle(name)

        def computed(work: Computed) -> None:
            hold(work.names)
            done(self._host.computed(chat, work))

        if self._host.computing is not None:
            work = self._worker.compute(body, self._host.computing)
            loop.call_later(work.after, computed, work)
        else:
            done(self._host.prefilled(chat, body))
            loop.call_soon(lambda: hold(self._worker.learn(body)))

    def _decode(self, chat: bool, name: str, body: bytes) -> None:
        stream = self._host.streams[chat]
        if not name:
            self._stream(stream.plain, stream.rest)
        elif _FETCH not in body:
            self._alone(stream, name, body)
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

    def _alone(self, stream: answers.Stream, name: str, body: bytes) -> None:
        """Decode computes what it lacks of a prompt."""
        worker, loop = self._worker, asyncio.get_running_loop()

        def answer() -> None:
            self._stream(stream.told(name, "nothing to fetch"), stream.rest)

        def computed(names: list[bytes]) -> None:
            worker.hold(names)
            answer()

        if self._host.computing is not None:
            work = worker.compute(body, self._host.computing)
            loop.call_later(work.after, computed, work.names)
        else:
            answer()
            loop.call_soon(lambda: worker.hold(worker.learn(body)))

    def _stream(self, first: bytes, rest: bytes) -> None:
        self.write(first)
        asyncio.get_running_loop().call_soon(self._end, rest)

    def _end(self, rest: bytes) -> None:
        self.answer(rest)
