"""The scheduler half of prefill: which pages are complete, and what the DRAM tier holds.

A request's stages are drawn in :mod:`prefill.tracked`. The tier is asked once per request; after
that the engine computes, whatever happens. Of a request of which nothing may be kept the tier
hears nothing. A request that is only shipped waits as if it were loaded until its gate ends it, and
nothing is computed.

Of a sliding group only the blocks are shipped that live at the prompt's end. vLLM gives such
blocks away as soon as the window has passed them, the last of them when the request finishes and
though we have asked it to wait; so each one ordered to be read is held until that has ended.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvstore.blockhash import block_names, prompt_digest
from kvstore.clock import Clock
from kvstore.errors import WireError
from kvstore.handoff import (
    EngineRequest,
    PrefillReport,
    decode_computes_rest,
    prefill_ticket,
    whole_blocks,
)
from kvstore.layout import KVGroup
from kvstore.messages import Held
from kvstore.once import UsedOnce
from kvstore.tier import TierKey, TierLookup
from kvstore.tier_shape import NULL_BLOCK
from kvstore.transfer import Prompt
from prefill.leaving import Leaving
from prefill.orders import Opening, Orders, Supply
from prefill.tier_orders import BlockTables, Copied, TierOrders
from prefill.tracked import Stage, Tracked

WAIT_SECONDS = 5.0
"""How long a prompt that is only shipped waits for its gate to end it; then it is computed."""

TELL_SECONDS = 1.0
"""How often the gate is told."""

log = logging.getLogger("kvferry.prefill")


@dataclass(frozen=True)
class Scheduled:
    """A request in this step: ``computed`` tokens before it, ``planned`` more by its end.

    ``tables``: its block table in each KV cache group.
    """

    request: str
    computed: int
    planned: int
    tables: BlockTables


class BlockHolds(Protocol):
    """Keeps blocks of the engine from being given to another request; holds are counted."""

    def hold(self, block_ids: Sequence[int]) -> None: ...

    def release(self, block_ids: Sequence[int]) -> None: ...


class PrefillScheduling:
    """Owned by the engine's scheduler; no method waits for anything."""

    def __init__(
        self,
        tier: TierLookup,
        groups: tuple[KVGroup, ...],
        block_size: int,
        lease_seconds: float,
        holds: BlockHolds,
        clock: Clock,
    ) -> None:
        self._tier = tier
        self._groups = groups
        self._copies = TierOrders(groups, block_size, tier.chunk_tokens)
        self._block_size = block_size
        self._holds = holds
        self._held: defaultdict[str, list[int]] = defaultdict(list)
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._tracked: dict[str, Tracked] = {}
        self._to_park: list[Scheduled] = []
        self._parked: dict[str, Scheduled] = {}
        self._orders = Orders()
        self._told: list[Held] = []
        self._transfers = UsedOnce()
        self._leaving = Leaving()

    def added(self, request: EngineRequest) -> None:
        """A request joins the engine's queue."""
        tokens = list(request.prompt_token_ids or ())
        names = block_names(request.block_hashes)
        key = TierKey(request.request_id, tokens, request.cache_salt or "", names)
        tracked = Tracked(key, *self._ticket(request, len(tokens)))
        self._tracked[key.request] = tracked
        if tracked.kept:
            self._tier.start(key)

    def matched(self, request: str, computed: int) -> int | None:
        """Tokens beyond ``computed`` that the DRAM tier will load; None: ask again.

        One token, which nobody will load, keeps a request waiting that is only shipped.
        """
        tracked = self._tracked.get(request)
        if tracked is None or tracked.stage is not Stage.NEW:
            return 0
        tracked.local, last = computed, len(tracked.key.tokens) - 1
        all_here = computed >= whole_blocks(len(tracked.key.tokens), self._block_size)
        if all_here and tracked.leaves_rest and self._keeps_windows(computed):
            tracked.leaves_rest = False  # Asked again it has found no room to wait in: compute it.
            tracked.only_ships = True
            return 1
        tracked.only_ships = False
        held = self._tier.poll(request) if tracked.kept else 0
        if held is None:
            return None
        tracked.copied = Copied(held, held)
        if all_here:
            return 0  # Less than a block is missing, and would be computed sooner.
        # The last token is computed in any case; the engine would reserve a sliding group's blocks
        # as for the token after it, and so without the first one that the last token attends to.
        return max(0, min(held, last) - computed)

    def allocated(self, request: str, tables: BlockTables, external: int) -> None:
        """The engine has reserved blocks for the request, ``external`` tokens to load."""
        tracked = self._tracked.get(request)
        if tracked is None or tracked.stage is not Stage.NEW:
            return
        if external and tracked.only_ships:
            tracked.stage = Stage.SHIPPING
            self._to_park.append(Scheduled(request, tracked.local, 0, tables))
            return
        if external == 0:
            tracked.stage = Stage.COMPUTING
            self._tier.keep(request, 0, 0)
            return
        end = tracked.copied.chunks
        tracked.stage, tracked.loading = Stage.LOADING, end - tracked.local
        loads = self._copies.loads(tracked.key, tracked.local, end, tables)
        self._tier.keep(request, loads[0].start, end)
        self._orders.loads += loads

    def loaded(self, requests: Iterable[str]) -> None:
        """Loads are over, well or not, or what kept requests waiting that were only shipped."""
        for request in requests:
            self._release(request)
            if tracked := self._tracked.get(request):
                tracked.stage, tracked.begun = Stage.COMPUTING, None

    def preempted(self, requests: Iterable[str]) -> None:
        """The engine has taken these requests' pages back; it will compute them again."""
        for request in requests:
            if tracked := self._tracked.get(request):
                tracked.supplied.clear()
                self._release(request)
                self._orders.withdrawals.append((request, tracked.transfer))

    def step(self, scheduled: Iterable[Scheduled], idle: bool = False) -> Orders:
        """The orders that go with the next engine step; ``idle``: it computes nothing."""
        items, parked = list(scheduled), self._to_park
        self._to_park = []
        written = {page for item in items for page in self._written(item)}
        for item in (*items, *parked):
            if tracked := self._tracked.get(item.request):
                self._begin(tracked, item)
                self._open(item.request, tracked)
                self._supply(tracked, item, written)
        for item in items:
            if tracked := self._tracked.get(item.request):
                self._store(tracked, item)
        self._park(parked)
        self._let_go()
        orders, self._orders = self._orders, Orders()
        orders.idle = idle
        return orders

    def take_told(self) -> list[Held]:
        """What the worker's gate is to hear since the last call."""
        told, self._told = self._told, []
        return told

    def sent(self, requests: Iterable[str]) -> None:
        """These finished requests' blocks are no longer read."""
        for request in requests:
            self._leaving.sent(request)
            self._release(request)

    def flush(self, flushing: Mapping[str, int]) -> None:
        """These tenants' KV of lower epochs, by tag, waits for nobody that has not asked for it."""
        for request, transfer in self._leaving.flush(flushing):
            self._orders.withdrawals.append((request, transfer))
            self._orders.closings.append(transfer)

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
        resumed = tracked.stage is Stage.SHIPPING and self._parked.pop(request, None) is None
        if tracked.transfer is not None:
            self._orders.closings.append(tracked.transfer)
        if resumed or not (tracked.opened or tracked.ordered_stores):
            # Never computed here, or to be resumed. A load under way is the engine's to wait for,
            # not ours; so is the end of a wait, once it is ordered.
            return False
        self._orders.released.append(request)
        if tracked.transfer is not None:
            self._leaving.add(request, tracked.key.salt, tracked.transfer)
        return True

    def _ticket(self, request: EngineRequest, length: int) -> tuple[bytes | None, float, bool]:
        try:
            ticket = prefill_ticket(request.kv_transfer_params)
        except WireError as error:
            log.warning("request not shipped: %s", error)
            return None, 0.0, False
        if ticket is None or not self._transfers.first_use(ticket.transfer):
            return None, 0.0, False
        until = self._clock() + ticket.ttl_ms / 1000 + self._lease_seconds
        leaves_rest = decode_computes_rest(ticket.held, length, self._block_size)
        return bytes.fromhex(ticket.transfer), until, leaves_rest

    def _keeps_windows(self, computed: int) -> bool:
        """Whether what sliding groups have at ``computed`` outlives the token a wait is for."""
        here, next_one = (
            [group.first_live(at, self._block_size) for group in self._groups]
            for at in (computed, computed + 1)
        )
        return here == next_one

    def _park(self, items: Iterable[Scheduled]) -> None:
        for item in items:
            if tracked := self._tracked.get(item.request):
                tracked.waits_until = self._clock() + WAIT_SECONDS
                self._orders.parked.append(item.request)
                self._parked[item.request] = item

    def _let_go(self) -> None:
        """Tell of what is parked, once the tier has what it lacks of it; resume what waits on."""
        for request, item in list(self._parked.items()):
            tracked, now = self._tracked[request], self._clock()
            if now >= tracked.waits_until:
                del self._parked[request]
                self._orders.resumed.append(request)
            elif tracked.told_until == 0.0:
                self._keep_in_tier(tracked, item)
            elif now >= tracked.told_until:
                self._tell(tracked)

    def _keep_in_tier(self, tracked: Tracked, item: Scheduled) -> None:
        held = self._tier.poll(item.request)
        if held is None:
            return
        tracked.copied = Copied(held, held)
        self._tier.keep(item.request, 0, 0)
        self._store(tracked, item)
        self._tell(tracked)

    def _tell(self, tracked: Tracked) -> None:
        assert tracked.transfer is not None
        assert tracked.begun is not None
        self._told.append(Held(tracked.transfer, tracked.local, tracked.begun))
        tracked.told_until = self._clock() + TELL_SECONDS

    def _begin(self, tracked: Tracked, item: Scheduled) -> None:
        if tracked.begun is not None:
            return
        tracked.begun = self._clock()
        # The last token of a prompt is computed even where all of it was loaded.
        whole = item.computed >= tracked.local + tracked.loading - 1
        tracked.dram = tracked.loading if whole else max(0, item.computed - tracked.local)

    def _open(self, request: str, tracked: Tracked) -> None:
        if tracked.transfer is None or tracked.opened:
            return
        tracked.opened = True
        blocks = -(-len(tracked.key.tokens) // self._block_size)
        prompt = Prompt(tracked.key.salt, prompt_digest(tracked.key.tokens), blocks)
        only_ships = tracked.stage is Stage.SHIPPING
        stop = tracked.local // self._block_size if only_ships else blocks
        self._orders.openings.append(
            Opening(tracked.transfer, request, prompt, tracked.lease_until, stop)
        )

    def _written(self, item: Scheduled) -> Iterator[int]:
        """The blocks that this step's forward pass writes for ``item``."""
        end = -(-(item.computed + item.planned) // self._block_size)
        for table in item.tables:
            yield from table[item.computed // self._block_size : end]

    def _supply(self, tracked: Tracked, item: Scheduled, written: set[int]) -> None:
        """Order the shipping of what is complete before this step's forward pass, and after.

        The engine counts as computed what another request of this very step is about to compute:
        such a page, and all behind it in its group, is complete only after the pass.
        """
        if tracked.transfer is None:
            return
        length, size = len(tracked.key.tokens), self._block_size
        # A decode worker computes at least the last token, and at most what follows whole blocks.
        earliest = whole_blocks(length, size)
        tracked.supplied = tracked.supplied or [
            group.first_live(earliest, size) for group in self._groups
        ]
        complete = min(item.computed, length) // size
        before = [
            next((at for at in range(done, complete) if table[at] in written), complete)
            for done, table in zip(tracked.supplied, item.tables, strict=True)
        ]
        self._supply_until(tracked, item, before, self._orders.supplies_before)
        reached = item.computed + item.planned
        after = reached // size if reached < length else -(-length // size)
        self._supply_until(tracked, item, [after] * len(before), self._orders.supplies_after)

    def _supply_until(
        self, tracked: Tracked, item: Scheduled, until: Sequence[int], supplies: list[Supply]
    ) -> None:
        pages = {
            (group, at): table[at]
            for group, table in enumerate(item.tables)
            for at in range(tracked.supplied[group], until[group])
            if table[at] != NULL_BLOCK
        }
        tracked.supplied = [max(ends) for ends in zip(tracked.supplied, until, strict=True)]
        if pages and tracked.transfer is not None:
            supplies.append(Supply(tracked.transfer, pages))
            sliding = [page for (group, _), page in pages.items() if self._groups[group].window]
            self._hold(item.request, sliding)

    def _store(self, tracked: Tracked, item: Scheduled) -> None:
        if not tracked.kept:
            return
        computed = item.computed + item.planned
        for op in self._copies.stores(tracked.key, tracked.copied, computed, item.tables):
            self._orders.stores.append(op)
            tracked.ordered_stores = True
            if op.part == "window":
                self._hold(item.request, op.block_ids)

    def _hold(self, request: str, block_ids: Sequence[int]) -> None:
        if block_ids:
            self._holds.hold(block_ids)
            self._held[request] += block_ids

    def _release(self, request: str) -> None:
        if held := self._held.pop(request, None):
            self._holds.release(held)
