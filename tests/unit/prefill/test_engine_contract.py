"""Both halves of prefill against a model of vLLM's scheduler, which dies of a stray completion."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.layout import KVGroup
from kvstore.tier import TierKey, TierOp, TierResult
from kvstore.tier_shape import NULL_BLOCK
from kvstore.transport.shipper import Shipper
from prefill.scheduling import PrefillScheduling, Scheduled
from prefill.working import PrefillWorking
from tests.support import engine_request
from tests.support.block_holds import CountedHolds
from tests.support.engine_request import ONCE, SALT, TAG
from tests.support.wipes import no_wiping

BLOCK, CHUNK = 4, 8
GROUPS = (KVGroup(("sliding",), 10), KVGroup(("full",)))


@dataclass
class Request(engine_request.Request):
    """vLLM's view of a request, and where it stands."""

    state: str = "waiting"
    cached: int = 0
    computed: int = 0
    tables: list[list[int]] = field(default_factory=list)

    @property
    def pages(self) -> set[int]:
        return {page for table in self.tables for page in table} - {NULL_BLOCK}

    def slide(self) -> None:
        """Give away what has left a window, as vLLM does before it plans and when one finishes."""
        for group, table in zip(GROUPS, self.tables, strict=False):
            gone = min(group.first_live(self.computed, BLOCK), len(table))
            table[:gone] = [NULL_BLOCK] * gone

    @property
    def transfer(self) -> bytes:
        ticket = cast("Any", self.kv_transfer_params or {}).get("kvferry", {})
        return bytes.fromhex(ticket.get("transfer", ""))

    @property
    def length(self) -> int:
        return len(self.prompt_token_ids)


class FakeTier:
    """Lookups answer what they are told; copies end when they are told."""

    chunk_tokens = CHUNK

    def __init__(self) -> None:
        self.answers: dict[str, int | None] = {}
        self.ops: list[tuple[str, TierOp]] = []
        self.results: list[TierResult] = []
        self.locked: dict[str, bool] = {}

    def start(self, key: TierKey) -> None:
        self.locked[key.request] = True

    def poll(self, request: str) -> int | None:
        return self.answers.get(request)

    def keep(self, request: str, start: int, end: int) -> None:
        assert start % CHUNK == 0
        assert end % CHUNK == 0

    def end(self, request: str) -> None:
        self.locked.pop(request, None)

    def store(self, op: TierOp) -> None:
        self.ops.append(("store", op))

    def load(self, op: TierOp) -> None:
        self.ops.append(("load", op))

    def withdraw(self, request: str) -> None:
        for kind, op in [entry for entry in self.ops if entry[1].request == request]:
            self.finish(kind, op, ok=False)

    def finish(self, kind: str, op: TierOp, *, ok: bool) -> None:
        self.ops.remove((kind, op))
        blocks = len(op.block_ids) if ok else 0
        reason = None if ok else "told to fail"
        self.results.append(TierResult(op.op, op.request, cast("Any", kind), ok, blocks, reason))

    def drain(self) -> list[TierResult]:
        results, self.results = self.results, []
        return results

    def close(self) -> None:
        return


class FakeShipper:
    """Settles an opened transfer when told, or when its prompt is closed incomplete: it failed."""

    def __init__(self) -> None:
        self.open_transfers: dict[bytes, set[int]] = {}
        self.supplied: dict[bytes, set[tuple[int, int]]] = {}
        self.stops: dict[bytes, int] = {}
        self.failed: set[bytes] = set()
        self.settled: list[bytes] = []

    def fence(self) -> None:
        return

    def open(self, transfer: bytes, prompt: Any, lease_until: float, stop: int) -> None:
        assert transfer not in self.open_transfers
        self.open_transfers[transfer] = set()
        self.supplied[transfer], self.stops[transfer] = set(), stop

    def supply(self, transfer: bytes, pages: dict[tuple[int, int], int]) -> None:
        if transfer in self.open_transfers:
            self.open_transfers[transfer] |= set(pages.values())
            self.supplied[transfer] |= set(pages)

    def withdraw(self, transfer: bytes) -> None:
        if transfer in self.open_transfers:
            self.open_transfers[transfer].clear()
            self.supplied[transfer].clear()

    def close(self, transfer: bytes) -> None:
        if transfer not in self.open_transfers:
            return
        last = self.stops[transfer] - 1
        if any((group, last) not in self.supplied[transfer] for group in range(len(GROUPS))):
            self.failed.add(transfer)
            self.settle(transfer)

    def settle(self, transfer: bytes) -> None:
        del self.open_transfers[transfer]
        self.settled.append(transfer)

    def take_settled(self, wait_seconds: float = 0.0) -> list[bytes]:
        settled, self.settled = self.settled, []
        return settled

    def stop(self) -> None:
        return


class EngineMachine(RuleBasedStateMachine):
    """Adds, schedules, preempts, aborts and finishes; completions come in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.tier, self.shipper = FakeTier(), FakeShipper()
        self.holds = CountedHolds()
        self.scheduling = PrefillScheduling(
            cast("Any", self.tier), GROUPS, BLOCK, 30.0, self.holds, lambda: self.now
        )
        self.working = PrefillWorking(
            [cast("Shipper", self.shipper)], cast("Any", self.tier), no_wiping()
        )
        self.requests: dict[str, Request] = {}
        self.loads: list[TierOp] = []
        self.told: set[bytes] = set()
        self.next_page = 1
        self.taken_back: set[int] = set()
        self.random = random.Random(0)

    @rule(
        length=st.integers(1, 40),
        expected=st.sampled_from([None, 0, 40]),
        held=st.integers(0, 6),
        cached=st.integers(0, 10),
        late=st.booleans(),
        kept=st.sampled_from([True, True, False]),
    )
    def add(
        self, length: int, expected: int | None, held: int, cached: int, late: bool, kept: bool
    ) -> None:
        """``cached``: blocks in the engine's memory; ``expected`` tokens, where it is shipped."""
        name = f"r{len(self.requests)}"
        transfer = f"{len(self.requests):032x}"
        ticket: dict[str, object] = {
            "kvferry": {"transfer": transfer, "ttl_ms": 1000, "held": expected}
        }
        params = None if expected is None else ticket
        request = Request(name, list(range(length)), SALT if kept else ONCE, params)
        request.cached = min(cached, (length - 1) // BLOCK) * BLOCK if kept else 0
        self.requests[name] = request
        self.tier.answers[name] = None if late else min(held * CHUNK, length // CHUNK * CHUNK)
        self.scheduling.added(request)
        assert kept or name not in self.tier.locked

    @rule()
    def lookups_are_answered(self) -> None:
        for name, answer in self.tier.answers.items():
            if answer is None:
                self.tier.answers[name] = 0

    @rule()
    def leases_end(self) -> None:
        self.now += 31.0

    @rule(tokens=st.integers(1, 16))
    def step(self, tokens: int) -> None:
        scheduled = []
        for request in self.requests.values():
            if request.state == "waiting" and not self._admit(request):
                continue
            if request.state == "running":
                planned = max(1, min(tokens, request.length - request.computed))
                request.slide()
                self._allocate(request, request.computed + planned)
                tables = [list(table) for table in request.tables]
                item = Scheduled(request.request_id, request.computed, planned, tables)
                scheduled.append(item)
                request.computed += planned
        self._run(scheduled)

    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        request = self._pick(data, "running")
        if request is not None:
            held = set(self.holds.held)
            self.scheduling.preempted([request.request_id])
            self.taken_back |= request.pages | (held - set(self.holds.held))
            request.state, request.computed, request.tables = "waiting", 0, []

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = self._pick(data, "running")
        if request is not None and request.computed >= request.length:
            self._finished(request)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = self._pick(data, "waiting", "running", "loading")
        if request is not None:
            self._finished(request)

    @rule()
    def a_flush_ends_what_only_waits_to_be_read(self) -> None:
        waiting = [one for one in self.requests.values() if one.state == "finished-waiting"]
        shipped = [one for one in waiting if one.transfer]
        self.told -= {one.transfer for one in shipped}
        self.scheduling.flush({TAG: 1})
        self._run([])
        assert {one.state for one in shipped} <= {"gone"}

    @rule(data=st.data(), ok=st.booleans())
    def a_copy_ends(self, data: st.DataObject, ok: bool) -> None:
        if self.tier.ops:
            kind, op = data.draw(st.sampled_from(self.tier.ops))
            self.tier.finish(kind, op, ok=ok)

    @rule(data=st.data())
    def a_transfer_ends(self, data: st.DataObject) -> None:
        if self.shipper.open_transfers:
            self.shipper.settle(data.draw(st.sampled_from(sorted(self.shipper.open_transfers))))

    @invariant()
    def pages_in_use_belong_to_a_live_request(self) -> None:
        held = {page for request in self.requests.values() for page in request.pages}
        used = {page for pages in self.shipper.open_transfers.values() for page in pages}
        for _, op in self.tier.ops:
            used |= set(op.block_ids[op.skip_blocks :])
        # A withdrawal reaches the worker with the next step, before pages are written again.
        assert used <= held | set(self.holds.held) | self.taken_back
        assert NULL_BLOCK not in used

    def teardown(self) -> None:
        for request in self.requests.values():
            if request.state in {"waiting", "running", "loading"}:
                self._finished(request)
        for _ in range(2):
            self._run([])
            for kind, op in list(self.tier.ops):
                self.tier.finish(kind, op, ok=True)
            for transfer in list(self.shipper.open_transfers):
                self.shipper.settle(transfer)
            self._run([])
        assert {request.state for request in self.requests.values()} <= {"gone"}
        assert not self.tier.locked
        assert not self.holds.held
        assert not self.told & self.shipper.failed, "what only was to be shipped must not fail"

    def _pick(self, data: st.DataObject, *states: str) -> Request | None:
        found = [request for request in self.requests.values() if request.state in states]
        return data.draw(st.sampled_from(found)) if found else None

    def _admit(self, request: Request) -> bool:
        """As vLLM: a load that is asked for holds the request until it is reported."""
        external = 0
        if request.computed == 0:
            answer = self.scheduling.matched(request.request_id, request.cached)
            if answer is None:
                return False
            request.computed, external = request.cached, answer
        computed = request.computed + external
        first = [group.first_live(computed, BLOCK) for group in GROUPS]
        request.tables = [[NULL_BLOCK] * (gone if computed else 0) for gone in first]
        self._allocate(request, computed)
        self.scheduling.allocated(request.request_id, request.tables, external)
        request.state = "loading" if external else "running"
        request.computed = computed
        return True

    def _allocate(self, request: Request, tokens: int) -> None:
        for table in request.tables:
            while len(table) * BLOCK < tokens:
                table.append(self.next_page)
                self.next_page += 1

    def _finished(self, request: Request) -> None:
        if request.state == "running":
            request.slide()
        waits = self.scheduling.finished(request.request_id)
        if request.state == "loading":
            request.state = "finished-loading"
        elif waits:
            request.state = "finished-waiting"
        else:
            self._free(request)

    def _free(self, request: Request) -> None:
        request.state, request.tables = "gone", []

    def _run(self, scheduled: list[Scheduled]) -> None:
        orders = self.scheduling.step(scheduled)
        for op in (*orders.loads, *orders.stores):
            assert self.requests[op.request].cache_salt == SALT, "the tier never hears of another"
        self.loads += orders.loads
        self.told |= {held.transfer for held in self.scheduling.take_told()}
        self.working.before_forward(orders)
        self.taken_back.clear()
        self.working.after_forward(orders)
        reports = self.working.reports()
        self.scheduling.loaded(reports.loaded)
        assert reports.failed <= reports.loaded
        for name in reports.loaded:
            request = self.requests[name]
            if request.state == "loading":
                failed = name in reports.failed
                # A prompt that was only shipped had a token to load that nobody has written.
                assert failed or any(op.request == name for op in self.loads)
                request.state = "waiting" if failed else "running"
                self.told.discard(request.transfer)
                request.computed = 0 if failed else min(request.computed, request.length - 1)
            else:
                assert request.state == "finished-loading"
                self._free(request)
        for name in reports.sent:
            assert self.requests[name].state == "finished-waiting"
            self._free(self.requests[name])
        self.scheduling.sent(reports.sent)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
