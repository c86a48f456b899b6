"""The scheduler half of decode: what is to be fetched, and when to compute instead.

A request's stages::

    NEW ── the engine reserves memory ──▶ FETCHING ── all there, or failed ──▶ OVER
     └──── nearly all is cached here, or the engine refuses ─────────────────▶ OVER

A transfer is used once. After a failure the engine asks again and is told there is nothing to
fetch, so it computes the prompt itself. A request with a local ticket has no transfer; of every
request with a ticket its first step is told.

All but a prompt's last token is fetched: that one is computed here in any case. Where the sender
holds nearly all of the prompt, what is missing from its last block is computed here too: those
blocks leave at once, and the rest would come a step of the sender's later. Of a sliding group the
blocks are fetched that the first token computed here attends to; vLLM reserves nothing before them.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from decode.orders import FetchOrder, Orders
from kvstore.blockhash import prompt_digest
from kvstore.clock import Clock
from kvstore.errors import WireError
from kvstore.handoff import (
    DecodeTicket,
    EngineRequest,
    LocalTicket,
    decode_computes_rest,
    decode_ticket,
    whole_blocks,
)
from kvstore.layout import KVGroup
from kvstore.messages import Begun
from kvstore.once import UsedOnce
from kvstore.transfer import Prompt

log = logging.getLogger("kvferry.decode")


class Stage(enum.Enum):
    """Where a request stands with its transfer."""

    NEW = enum.auto()
    FETCHING = enum.auto()
    OVER = enum.auto()


@dataclass
class _Tracked:
    ticket: DecodeTicket
    arrived: float
    tokens: list[int]
    salt: str
    deadline: float
    stage: Stage = Stage.NEW
    local: int = 0


class DecodeScheduling:
    """Owned by the engine's scheduler; no method waits for anything."""

    def __init__(self, groups: tuple[KVGroup, ...], block_size: int, clock: Clock) -> None:
        self._groups = groups
        self._block_size = block_size
        self._clock = clock
        self._tracked: dict[str, _Tracked] = {}
        self._not_begun: dict[str, tuple[bytes, float]] = {}
        self._orders = Orders()
        self._transfers = UsedOnce()

    def added(self, request: EngineRequest) -> None:
        """A request joins the engine's queue."""
        try:
            ticket = decode_ticket(request.kv_transfer_params)
        except WireError as error:
            log.warning("nothing fetched for a request: %s", error)
            return
        if ticket is None or not self._transfers.first_use(ticket.transfer):
            return
        now = self._clock()
        self._not_begun[request.request_id] = bytes.fromhex(ticket.transfer), now
        if isinstance(ticket, LocalTicket):
            return
        self._tracked[request.request_id] = _Tracked(
            ticket=ticket,
            arrived=now,
            tokens=list(request.prompt_token_ids or ()),
            salt=request.cache_salt or "",
            deadline=now + ticket.ttl_ms / 1000,
        )

    def matched(self, request: str, computed: int) -> int:
        """Tokens beyond ``computed`` that a prefill worker will send."""
        tracked = self._tracked.get(request)
        if tracked is None or tracked.stage is not Stage.NEW:
            return 0
        tracked.local = computed
        length, size = len(tracked.tokens), self._block_size
        whole = whole_blocks(length, size)
        if computed >= whole:
            self._decline(request, tracked)
            return 0
        rest_here = decode_computes_rest(tracked.ticket.held, length, size)
        return (whole if rest_here else length - 1) - computed

    def allocated(self, request: str, tables: Sequence[Sequence[int]], external: int) -> None:
        """The engine has reserved blocks for the request, ``external`` tokens to fetch.

        ``tables``: its block table in each KV cache group.
        """
        tracked = self._tracked.get(request)
        if tracked is None or tracked.stage is not Stage.NEW:
            return
        if external == 0:
            self._decline(request, tracked)
            return
        tracked.stage = Stage.FETCHING
        computed = tracked.local + external
        here, stop = tracked.local // self._block_size, -(-computed // self._block_size)
        first = tuple(
            max(here, group.first_live(computed, self._block_size)) for group in self._groups
        )
        wanted = tuple(tuple(table[at:stop]) for at, table in zip(first, tables, strict=True))
        self._orders.fetches.append(self._fetch(request, tracked, first, stop, wanted))

    def fetched(self, requests: Iterable[str]) -> None:
        """Fetches are over, well or not."""
        for request in requests:
            if tracked := self._tracked.get(request):
                tracked.stage = Stage.OVER

    def step(self, scheduled: Collection[str] = (), idle: bool = False) -> Orders:
        """The orders that go with the next engine step, which computes for ``scheduled`` requests.

        ``idle``: it computes nothing.
        """
        now = self._clock()
        for request in [name for name in self._not_begun if name in scheduled]:
            transfer, arrived = self._not_begun.pop(request)
            self._orders.begun.append(Begun(transfer, arrived, now))
        orders, self._orders = self._orders, Orders()
        orders.idle = idle
        return orders

    def finished(self, request: str) -> None:
        """The engine is through with the request, whatever its stage."""
        self._not_begun.pop(request, None)
        tracked = self._tracked.pop(request, None)
        if tracked is None:
            return
        if tracked.stage is Stage.FETCHING:
            self._orders.aborts.append(bytes.fromhex(tracked.ticket.transfer))
        elif tracked.stage is Stage.NEW:
            self._decline(request, tracked)

    def _decline(self, request: str, tracked: _Tracked) -> None:
        tracked.stage = Stage.OVER
        nothing = (0,) * len(self._groups), 0, ((),) * len(self._groups)
        self._orders.fetches.append(self._fetch(request, tracked, *nothing))

    def _fetch(
        self,
        request: str,
        tracked: _Tracked,
        first: tuple[int, ...],
        stop: int,
        block_ids: tuple[tuple[int, ...], ...],
    ) -> FetchOrder:
        blocks = -(-len(tracked.tokens) // self._block_size)
        prompt = Prompt(tracked.salt, prompt_digest(tracked.tokens), blocks)
        return FetchOrder(
            transfer=bytes.fromhex(tracked.ticket.transfer),
            request=request,
            peer=tracked.ticket.ship,
            sender_generation=tracked.ticket.sender_generation,
            prompt=prompt,
            first=first,
            stop=stop,
            block_ids=block_ids,
            local_tokens=tracked.local,
            prompt_tokens=len(tracked.tokens),
            arrived=tracked.arrived,
            deadline=tracked.deadline,
        )
