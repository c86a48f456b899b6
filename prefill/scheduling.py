"""The scheduler half of prefill: which pages are complete, and what the DRAM tier holds.

A request's stages::

    NEW ── tier holds more than the engine ──▶ LOADING ── loaded or failed ──▶ COMPUTING
     └──────────────── otherwise ─────────────────────────────────────────────▶ COMPUTING

The tier is asked once per request; after that the engine computes, whatever happens.
"""

from __future__ import annotations

import enum
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvstore.blockhash import prompt_digest
from kvstore.clock import Clock
from kvstore.errors import WireError
from kvstore.handoff import EngineRequest, PrefillReport, prefill_ticket
from kvstore.once import UsedOnce
from kvstore.tier import TierKey, TierLookup, TierOp
from kvstore.transfer import Prompt
from prefill.orders import Opening, Orders, Supply

log = logging.getLogger("kvferry.prefill")


@dataclass(frozen=True)
class Scheduled:
    """A request in this step: ``computed`` tokens before it, ``planned`` more by its end."""

    request: str
    computed: int
    planned: int
    block_ids: Sequence[int]


class Stage(enum.Enum):
    """Where a request stands with the DRAM tier."""

    NEW = enum.auto()
    LOADING = enum.auto()
    COMPUTING = enum.auto()


@dataclass
class _Tracked:
    tokens: list[int]
    salt: str
    transfer: bytes | None
    lease_until: float
    stage: Stage = Stage.NEW
    local: int = 0
    loading: int = 0
    dram: int = 0
    begun: float | None = None
    stored: int = 0
    supplied: int = 0
    opened: bool = False
    ordered_stores: bool = False


class PrefillScheduling:
    """Owned by the engine's scheduler; no method waits for anything."""

    def __init__(
        self, tier: TierLookup, block_size: int, lease_seconds: float, clock: Clock
    ) -> None:
        self._tier = tier
        self._block_size = block_size
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._tracked: dict[str, _Tracked] = {}
        self._orders = Orders()
        self._op_numbers = itertools.count()
        self._transfers = UsedOnce()

    def added(self, request: EngineRequest) -> None:
        """A request joins the engine's queue."""
        tokens = list(request.prompt_token_ids or ())
        transfer, lease_until = self._ticket(request)
        tracked = _Tracked(tokens, request.cache_salt or "", transfer, lease_until)
        self._tracked[request.request_id] = tracked
        self._tier.start(TierKey(request.request_id, tokens, tracked.salt))

    def matched(self, request: str, computed: int) -> int | None:
        """Tokens beyond ``computed`` that the DRAM tier will load; None: ask again."""
        tracked = self._tracked.get(request)
        if tracked is None or tracked.stage is not Stage.NEW:
            return 0
        held = self._tier.poll(request)
        if held is None:
            return None
        tracked.local = computed
        tracked.stored = min(held, len(tracked.tokens))
        return max(0, tracked.stored - computed)

    def allocated(self, request: str, block_ids: Sequence[int], external: int) -> None:
        """The engine has reserved ``block_ids`` for the request, ``external`` tokens to load."""
        tracked = self._tracked.get(request)
        if tracked is None or tracked.stage is not Stage.NEW:
            return
        if external == 0:
            tracked.stage = Stage.COMPUTING
            self._tier.keep(request, 0, 0)
            return
        tracked.stage, tracked.loading = Stage.LOADING, external
        end = tracked.local + external
        start = tracked.local // self._tier.chunk_tokens * self._tier.chunk_tokens
        self._tier.keep(request, start, end)
        skip = tracked.local - start
        self._orders.loads.append(self._op(request, tracked, start, end, block_ids, skip))

    def loaded(self, requests: Iterable[str]) -> None:
        """Loads are over, well or not."""
        for request in requests:
            if tracked := self._tracked.get(request):
                tracked.stage = Stage.COMPUTING

    def preempted(self, requests: Iterable[str]) -> None:
        """The engine has taken these requests' pages back; it will compute them again."""
        for request in requests:
            if tracked := self._tracked.get(request):
                tracked.supplied = 0
                self._orders.withdrawals.append((request, tracked.transfer))

    def step(self, scheduled: Iterable[Scheduled], idle: bool = False) -> Orders:
        """The orders that go with the next engine step; ``idle``: it computes nothing."""
        items = list(scheduled)
        written = {page for item in items for page in self._written(item)}
        for item in items:
            if tracked := self._tracked.get(item.request):
                self._begin(tracked, item)
                self._open(item.request, tracked)
                self._supply(tracked, item, written)
                self._store(tracked, item)
        orders, self._orders = self._orders, Orders()
        orders.idle = idle
        return orders

    def report(self, request: str) -> PrefillReport | None:
        """The request's account of itself, as of now; None where nothing was computed for it."""
        tracked = self._tracked.get(request)
        if tracked is None or tracked.begun is None:
            return None
        taken = max(0.0, self._clock() - tracked.begun)
        return PrefillReport(taken * 1000, tracked.local, tracked.dram)

    def finished(self, request: str) -> bool:
        """The engine is through with the request; True: it must wait for our report."""
        tracked = self._tracked.pop(request, None)
        if tracked is None:
            return False
        self._tier.end(request)
        if tracked.transfer is not None:
            self._orders.closings.append(tracked.transfer)
        if not tracked.opened and not tracked.ordered_stores:
            # Never computed here. A load under way is the engine's to wait for, not ours.
            return False
        self._orders.released.append(request)
        return True

    def _ticket(self, request: EngineRequest) -> tuple[bytes | None, float]:
        try:
            ticket = prefill_ticket(request.kv_transfer_params)
        except WireError as error:
            log.warning("request not shipped: %s", error)
            return None, 0.0
        if ticket is None or not self._transfers.first_use(ticket.transfer):
            return None, 0.0
        until = self._clock() + ticket.ttl_ms / 1000 + self._lease_seconds
        return bytes.fromhex(ticket.transfer), until

    def _begin(self, tracked: _Tracked, item: Scheduled) -> None:
        if tracked.begun is not None:
            return
        tracked.begun = self._clock()
        # The last token of a prompt is computed even where all of it was loaded.
        whole = item.computed >= tracked.local + tracked.loading - 1
        tracked.dram = tracked.loading if whole else max(0, item.computed - tracked.local)

    def _open(self, request: str, tracked: _Tracked) -> None:
        if tracked.transfer is None or tracked.opened:
            return
        tracked.opened = True
        blocks = -(-len(tracked.tokens) // self._block_size)
        prompt = Prompt(tracked.salt, prompt_digest(tracked.tokens), blocks)
        self._orders.openings.append(
            Opening(tracked.transfer, request, prompt, tracked.lease_until)
        )

    def _written(self, item: Scheduled) -> Sequence[int]:
        """The pages that this step's forward pass writes for ``item``."""
        end = -(-(item.computed + item.planned) // self._block_size)
        return item.block_ids[item.computed // self._block_size : end]

    def _supply(self, tracked: _Tracked, item: Scheduled, written: set[int]) -> None:
        """Order the shipping of what is complete before this step's forward pass, and after.

        The engine counts as computed what another request of this very step is about to compute:
        such a page, and all behind it, is complete only after the pass.
        """
        if tracked.transfer is None:
            return
        length = len(tracked.tokens)
        before = min(item.computed, length) // self._block_size
        early = range(tracked.supplied, before)
        before = next((at for at in early if item.block_ids[at] in written), before)
        reached = item.computed + item.planned
        after = reached // self._block_size
        if reached >= length:
            after = -(-length // self._block_size)
        for until, supplies in (
            (before, self._orders.supplies_before),
            (after, self._orders.supplies_after),
        ):
            pages = {at: item.block_ids[at] for at in range(tracked.supplied, until)}
            if pages:
                supplies.append(Supply(tracked.transfer, pages))
                tracked.supplied = until

    def _store(self, tracked: _Tracked, item: Scheduled) -> None:
        """Order the storing of chunks that this step completes and the tier lacks."""
        chunk = self._tier.chunk_tokens
        if chunk == 0:
            return
        complete = min(item.computed + item.planned, len(tracked.tokens)) // chunk * chunk
        if complete > tracked.stored:
            op = self._op(item.request, tracked, tracked.stored, complete, item.block_ids, 0)
            self._orders.stores.append(op)
            tracked.stored = complete
            tracked.ordered_stores = True

    def _op(
        self,
        request: str,
        tracked: _Tracked,
        start: int,
        end: int,
        block_ids: Sequence[int],
        skip: int,
    ) -> TierOp:
        return TierOp(
            op=next(self._op_numbers),
            request=request,
            tokens=tracked.tokens[:end],
            salt=tracked.salt,
            start=start,
            end=end,
            block_ids=list(block_ids[start // self._block_size : -(-end // self._block_size)]),
            skip_first_tokens=skip,
        )
