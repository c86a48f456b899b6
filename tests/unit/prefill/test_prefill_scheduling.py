"""What leaves before a forward pass is complete before it."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.handoff import PrefillReport
from kvstore.layout import KVGroup
from kvstore.tier import NoLookup, TierKey, TierLookup
from kvstore.tier_shape import Part
from prefill.orders import Orders
from prefill.scheduling import PrefillScheduling, Scheduled
from tests.support.block_holds import CountedHolds
from tests.support.engine_request import ONCE, SALT, TAG, Request

BLOCK = 4


def scheduling(
    *names: str,
    length: int = 20,
    groups: tuple[KVGroup, ...] = (KVGroup(),),
    tier: TierLookup | None = None,
    holds: CountedHolds | None = None,
) -> PrefillScheduling:
    subject = PrefillScheduling(
        tier or NoLookup(), groups, BLOCK, 30.0, holds or CountedHolds(), lambda: 0.0
    )
    for number, name in enumerate(names):
        params: dict[str, Any] = {"kvferry": {"transfer": f"{number:032x}", "ttl_ms": 1000}}
        subject.added(Request(name, list(range(length)), SALT, params))
        assert subject.matched(name, 0) == 0
        subject.allocated(name, [[]], 0)
    return subject


def pages(supplies: list[Any], group: int = 0) -> dict[bytes, dict[int, int]]:
    return {
        supply.transfer: {at: page for (of, at), page in supply.pages.items() if of == group}
        for supply in supplies
    }


def test_what_is_cached_leaves_before_the_forward_pass() -> None:
    orders = scheduling("a").step([Scheduled("a", 12, 8, [[5, 6, 7, 8, 9]])])
    (before,) = pages(orders.supplies_before).values()
    (after,) = pages(orders.supplies_after).values()
    assert (before, after) == ({0: 5, 1: 6, 2: 7}, {3: 8, 4: 9})


def test_what_another_request_of_the_same_step_computes_leaves_after_it() -> None:
    """vLLM enters blocks into its cache when it plans them, not when they are computed."""
    orders = scheduling("a", "b").step(
        [
            Scheduled("a", 4, 16, [[1, 2, 3, 4, 5]]),
            Scheduled("b", 16, 4, [[1, 2, 3, 4, 6]]),
        ]
    )
    assert pages(orders.supplies_before) == {bytes(16): {0: 1}, bytes(15) + b"\x01": {0: 1}}
    assert pages(orders.supplies_after)[bytes(15) + b"\x01"] == {1: 2, 2: 3, 3: 4, 4: 6}


def test_a_preempted_request_supplies_its_new_pages() -> None:
    subject = scheduling("a")
    subject.step([Scheduled("a", 0, 20, [[1, 2, 3, 4, 5]])])
    subject.preempted(["a"])
    orders = subject.step([Scheduled("a", 0, 8, [[11, 12, 13, 14, 15]])])
    assert orders.withdrawals == [("a", bytes(16))]
    assert list(pages(orders.supplies_after).values()) == [{0: 11, 1: 12}]


def test_a_flush_takes_back_what_finished_requests_hold_for_decode() -> None:
    """Nobody may ever ask for it, and a lease is longer than a flush may take."""
    subject = scheduling("a", "b")
    subject.step([Scheduled("a", 0, 20, [[1, 2, 3, 4, 5]])])
    assert subject.finished("a")
    subject.step([])
    subject.flush({TAG: 1})
    orders = subject.step([])
    assert orders.withdrawals == [("a", bytes(16))]
    assert orders.closings == [bytes(16)]
    subject.flush({TAG: 1})
    assert not subject.step([]).withdrawals


@pytest.mark.parametrize("flushing", [{TAG: 0}, {"0" * 16: 1}])
def test_a_flush_of_another_tenant_or_an_epoch_before_leaves_it(flushing: dict[str, int]) -> None:
    subject = scheduling("a")
    subject.step([Scheduled("a", 0, 20, [[1, 2, 3, 4, 5]])])
    subject.finished("a")
    subject.flush(flushing)
    assert not subject.step([]).withdrawals


def test_what_has_been_sent_is_not_taken_back() -> None:
    subject = scheduling("a")
    subject.step([Scheduled("a", 0, 20, [[1, 2, 3, 4, 5]])])
    subject.finished("a")
    subject.sent(["a"])
    subject.flush({TAG: 1})
    assert not subject.step([]).withdrawals


class Holding(NoLookup):
    """A tier that holds eight tokens of any prompt."""

    chunk_tokens = 8

    def poll(self, request: str) -> int:
        return 8


@pytest.mark.parametrize(
    ("local", "computed", "gpu", "dram"),
    [
        (4, 8, 4, 4),  # half of the chunk was in engine memory
        (0, 7, 0, 8),  # all of the prompt was loaded: its last token is computed all the same
        (4, 4, 4, 0),  # the load failed
    ],
)
def test_a_report_tells_when_it_began_and_what_was_loaded(
    local: int, computed: int, gpu: int, dram: int
) -> None:
    times = iter([5.0, 6.0, 6.25])
    subject = PrefillScheduling(
        Holding(), (KVGroup(),), BLOCK, 30.0, CountedHolds(), lambda: next(times)
    )
    ticket: dict[str, object] = {"kvferry": {"transfer": "0" * 32, "ttl_ms": 1000}}
    subject.added(Request("r", list(range(20)), SALT, ticket))
    external = subject.matched("r", local)
    assert external == 8 - local
    subject.allocated("r", [[1, 2, 3, 4, 5]], external)
    subject.step([])
    assert subject.report("r") is None
    subject.loaded(["r"])
    for done in (computed, computed + 4):
        subject.step([Scheduled("r", done, 4, [[1, 2, 3, 4, 5]])])
    assert subject.report("r") == PrefillReport(250.0, gpu, dram)
    subject.finished("r")
    assert subject.report("r") is None


# --- sliding windows

SLIDING = (KVGroup(("s",), 6), KVGroup(("f",)))
"""The token after 19 others attends to 14 … 19: blocks 3 and 4 live at the end of 20 tokens."""


class Chunked(NoLookup):
    """A tier of chunks of eight tokens that holds nothing."""

    chunk_tokens = 8


def test_a_sliding_group_ships_what_lives_at_the_prompts_end() -> None:
    subject = scheduling("a", groups=SLIDING)
    first = subject.step([Scheduled("a", 0, 12, [[1, 2, 3], [11, 12, 13]])])
    last = subject.step([Scheduled("a", 12, 8, [[0, 2, 3, 4, 5], [11, 12, 13, 14, 15]])])
    assert pages(first.supplies_after, 0)[bytes(16)] == {2: 3}
    assert pages(first.supplies_after, 1)[bytes(16)] == {0: 11, 1: 12, 2: 13}
    assert pages(last.supplies_after, 0)[bytes(16)] == {3: 4, 4: 5}
    assert pages(last.supplies_after, 1)[bytes(16)] == {3: 14, 4: 15}


@pytest.mark.parametrize(("length", "first"), [(17, 2), (18, 2), (20, 2), (21, 3), (22, 3)])
def test_the_last_blocks_first_token_finds_all_it_attends_to(length: int, first: int) -> None:
    """Decode computes from there on, or the last token alone."""
    subject = scheduling("a", length=length, groups=SLIDING)
    table = list(range(1, 7))
    orders = subject.step([Scheduled("a", 0, length, [table, table])])
    (shipped,) = pages(orders.supplies_after).values()
    assert min(shipped) == first == ((length - 1) // BLOCK * BLOCK - 5) // BLOCK


def test_what_has_been_given_away_is_never_shipped() -> None:
    """A request that decoded on before it was preempted finds a later window cached."""
    subject = scheduling("a", groups=SLIDING)
    tables = [[0, 0, 0, 0, 5, 6, 7], [11, 12, 13, 14, 15, 16, 17]]
    orders = subject.step([Scheduled("a", 24, 2, tables)])
    assert pages(orders.supplies_before, 0)[bytes(16)] == {4: 5}


def test_what_is_cached_of_a_window_leaves_before_the_forward_pass() -> None:
    subject = scheduling("a", groups=SLIDING)
    orders = subject.step([Scheduled("a", 16, 4, [[0, 0, 3, 4, 5], [11, 12, 13, 14, 15]])])
    assert pages(orders.supplies_before, 0)[bytes(16)] == {2: 3, 3: 4}
    assert pages(orders.supplies_after, 0)[bytes(16)] == {4: 5}


def test_a_sliding_groups_blocks_are_held_until_they_are_no_longer_read() -> None:
    holds = CountedHolds()
    subject = scheduling("a", "b", groups=SLIDING, holds=holds)
    tables = [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]]
    subject.step([Scheduled("a", 0, 20, tables)])
    assert holds.held == {3: 1, 4: 1, 5: 1}
    assert subject.finished("a")
    assert holds.held == {3: 1, 4: 1, 5: 1}
    subject.sent(["a"])
    subject.sent(["a"])
    assert not holds.held
    subject.step([Scheduled("b", 0, 20, tables)])
    subject.preempted(["b"])
    assert not holds.held


def stores(orders: Orders, part: Part) -> list[tuple[int, int, list[int]]]:
    return [(op.start, op.end, op.block_ids) for op in orders.stores if op.part == part]


def test_chunks_are_stored_as_they_complete_and_the_last_window_once() -> None:
    holds = CountedHolds()
    subject = scheduling("a", length=30, groups=SLIDING, tier=Chunked(), holds=holds)
    full = list(range(11, 19))
    first = subject.step([Scheduled("a", 0, 20, [[1, 2, 3, 4, 5], full])])
    assert stores(first, "chunks") == [(0, 16, [11, 12, 13, 14])]
    assert stores(first, "window") == []
    last = subject.step([Scheduled("a", 20, 10, [[0, 0, 0, 4, 5, 6, 7, 8], full])])
    assert stores(last, "chunks") == [(16, 24, [15, 16])]
    # Token 23 attends to 18 … 23.
    assert stores(last, "window") == [(16, 24, [5, 6])]
    assert {5, 6} <= set(holds.held)
    again = subject.step([Scheduled("a", 30, 1, [[0, 0, 0, 0, 0, 6, 7, 8], full])])
    assert again.stores == []


def test_a_window_that_is_gone_is_not_stored() -> None:
    subject = scheduling("a", length=30, groups=SLIDING, tier=Chunked())
    full = list(range(11, 19))
    orders = subject.step([Scheduled("a", 26, 4, [[0, 0, 0, 0, 0, 6, 7, 8], full])])
    assert stores(orders, "window") == []
    assert stores(orders, "chunks") == [(0, 24, full[:6])]


class HoldingAll(Chunked):
    """A tier that holds 16 tokens of any prompt, and their window."""

    def poll(self, request: str) -> int:
        return 16


@pytest.mark.parametrize(
    ("length", "local", "external", "skips"),
    [
        (20, 0, 16, (0, 0)),
        (20, 12, 4, (1, 1)),  # block 2 of each group is the engine's own already
        (16, 0, 15, (0, 0)),  # the last token is computed
    ],
)
def test_chunks_and_window_are_loaded_into_what_the_engine_lacks(
    length: int, local: int, external: int, skips: tuple[int, int]
) -> None:
    subject = PrefillScheduling(HoldingAll(), SLIDING, BLOCK, 30.0, CountedHolds(), lambda: 0.0)
    subject.added(Request("r", list(range(length))))
    assert subject.matched("r", local) == external
    subject.allocated("r", [[0, 0, 3, 4], [11, 12, 13, 14]], external)
    chunks, window = subject.step([]).loads
    start = local // 8 * 8
    assert (chunks.part, chunks.start, chunks.end) == ("chunks", start, 16)
    assert chunks.block_ids == [11, 12, 13, 14][start // 4 :]
    assert (window.part, window.end, window.block_ids) == ("window", 16, [3, 4])
    assert (chunks.skip_blocks, window.skip_blocks) == skips
    subject.loaded(["r"])
    computed = min(16, length - 1)
    orders = subject.step(
        [Scheduled("r", computed, length - computed, [[0, 0, 3, 4, 5], [11, 12, 13, 14, 15]])]
    )
    assert orders.stores == []


def test_less_than_a_block_is_not_loaded() -> None:
    """A load up to the end would also cost the block that a decode worker's first token needs."""
    subject = PrefillScheduling(HoldingAll(), SLIDING, BLOCK, 30.0, CountedHolds(), lambda: 0.0)
    subject.added(Request("r", list(range(16))))
    assert subject.matched("r", 12) == 0
    assert subject.matched("r", 8) == 7


def test_a_store_names_the_blocks_it_holds() -> None:
    """As the engine names them: adapters and all else that it hashes are in there."""
    hashes = [bytes([number]) * 32 for number in range(7)]
    subject = scheduling(groups=SLIDING, tier=Chunked())
    subject.added(Request("a", list(range(30)), block_hashes=hashes))
    full = list(range(11, 19))
    orders = subject.step([Scheduled("a", 8, 22, [[0, 0, 0, 4, 5, 6, 7, 8], full])])
    named = {op.part: (op.start, op.end, op.names) for op in orders.stores}
    assert named["chunks"] == (0, 24, b"".join(block[:16] for block in hashes[:6]))
    assert named["window"] == (16, 24, hashes[4][:16] + hashes[5][:16])


# --- requests of which nothing may be kept


class Watched(NoLookup):
    """A tier that would hold all of it."""

    chunk_tokens = 8

    def __init__(self) -> None:
        self.asked: list[str] = []

    def start(self, key: TierKey) -> None:
        self.asked.append(key.request)

    def poll(self, request: str) -> int:
        return 16


@pytest.mark.parametrize(("salt", "kept"), [(SALT, True), (ONCE, False), ("other", False)])
def test_the_tier_hears_only_of_what_may_be_kept(salt: str, kept: bool) -> None:
    tier = Watched()
    subject = PrefillScheduling(tier, (KVGroup(),), BLOCK, 30.0, CountedHolds(), lambda: 0.0)
    ticket: dict[str, object] = {"kvferry": {"transfer": "0" * 32, "ttl_ms": 1000}}
    subject.added(Request("r", list(range(20)), salt, ticket))
    external = subject.matched("r", 0)
    assert (tier.asked, external) == ((["r"], 16) if kept else ([], 0))
    subject.allocated("r", [[1, 2, 3, 4, 5]], external or 0)
    subject.loaded(["r"])
    orders = subject.step([Scheduled("r", external or 0, 20 - (external or 0), [[1, 2, 3, 4, 5]])])
    assert bool(orders.loads) == kept
    assert len(orders.openings) == 1, "it is shipped all the same"
    other = scheduling(tier=NoChunks())
    other.added(Request("s", list(range(20)), salt, None))
    assert other.matched("s", 0) == 0
    other.allocated("s", [[1, 2, 3, 4, 5]], 0)
    orders = other.step([Scheduled("s", 0, 20, [[1, 2, 3, 4, 5]])])
    assert bool(orders.stores) == kept


class NoChunks(NoLookup):
    """A tier that holds nothing yet."""

    chunk_tokens = 8
