"""The pool that knows tenants, under vLLM's own cache manager, against a model of its promises."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import get_block_hash, get_group_id, maybe_convert_block_hash

from kvstore.engine_pool import CarriedOut, TenantPool, adopt, new_blocks
from kvstore.errors import ConfigError
from kvstore.salts import Scope, one_shot, owner, salt, tag
from tests.support.block_pools import BLOCK, LONGEST, manager, plain_pool, request

KEY = bytes(32)
TENANTS = ("a", "b", "c")
TAGS = {name: tag(KEY, name) for name in TENANTS}
BLOCKS = 17
SHARES = [(0.0, 1.0), (0.25, 0.5), (0.5, 1.0), (0.0, 0.25), (0.0, 0.0)]


class PoolMachine(RuleBasedStateMachine):
    """What lies in a block is the set of salts whose bytes it may hold, in ``bytes_of``."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = manager(BLOCKS, sliding=True)
        self.pool = adopt(self.manager.block_pool)
        self.pool.get_new_blocks = self.get_new_blocks  # type: ignore[method-assign]
        self.epochs = dict.fromkeys(TENANTS, 0)
        self.shares: dict[str, tuple[float, float]] = {}
        self.running: dict[str, Any] = {}
        self.unwritten: dict[str, tuple[int, int]] = {}
        self.held: Counter[int] = Counter()
        self.bytes_of: list[set[str]] = [set() for _ in range(BLOCKS)]
        self.names = 0
        self.stored: Counter[tuple[object, int]] = Counter()

    # -- what the scheduler does

    @rule(
        tenant=st.sampled_from(TENANTS),
        kind=st.sampled_from(["kept", "kept", "kept", "once", "nobody", "late"]),
        length=st.integers(1, 30),
        prompt=st.integers(0, 2),
    )
    def begin(self, tenant: str, kind: str, length: int, prompt: int) -> None:
        epoch = max(0, self.epochs[tenant] - (kind == "late"))
        salts = {"once": one_shot(KEY, tenant, epoch), "nobody": "no salt of ours"}
        self.names += 1
        tokens = [prompt + 3 * position for position in range(length)]
        new = request(f"r{self.names}", tokens, salts.get(kind, salt(KEY, Scope(tenant, epoch))))
        found, computed, _ = self.manager.get_computed_blocks(new)
        if owner(new.cache_salt) is None or not self.keeps(new.cache_salt):
            assert computed == 0, "nothing of it is ever found"
        got = self.manager.allocate_slots(new, length - computed, computed, found)
        if got is None:
            return
        new.num_computed_tokens = computed
        self.pool.claim(new.cache_salt, self.ids(new.request_id))
        self.running[new.request_id] = new
        self.unwritten[new.request_id] = computed, length

    @rule(data=st.data(), more=st.integers(1, 6))
    def grow(self, data: st.DataObject, more: int) -> None:
        name = self.pick(data)
        if name is None or self.running[name].num_tokens + more > LONGEST:
            return
        grown = self.running[name]
        self.step()
        old = set(self.ids(name))
        computed = grown.num_tokens
        grown.append_output_token_ids([7] * more)
        if self.manager.allocate_slots(grown, more) is None:
            self.finish_one(name)
            return
        self.pool.claim(grown.cache_salt, set(self.ids(name)) - old)
        self.unwritten[name] = computed, computed + more

    @rule()
    def step(self) -> None:
        """A forward pass: first what is ordered to be overwritten is."""
        self.wipe(BLOCKS)
        for name, (start, stop) in self.unwritten.items():
            running = self.running[name]
            for table in self.manager.get_block_ids(name):
                for at in range(start // BLOCK, -(-stop // BLOCK)):
                    if at < len(table) and table[at]:
                        self.write(table[at], running.cache_salt, whole=stop >= (at + 1) * BLOCK)
            running.num_computed_tokens = stop
        self.unwritten.clear()

    @rule(most=st.integers(1, 5))
    def step_that_overwrites_little(self, most: int) -> None:
        self.wipe(most)
        for name in list(self.unwritten):
            for block in self.ids(name):
                known = block in self.pool._suspect
                assert known or not self.foreign(block, self.running[name].cache_salt)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if name := self.pick(data):
            self.finish_one(name)

    # -- what connectors do

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        if name := self.pick(data):
            blocks = [block for block in self.ids(name) if block]
            self.pool.hold(blocks)
            self.held.update(blocks)

    @rule()
    def release(self) -> None:
        blocks = sorted(self.held.elements())
        self.held.clear()
        self.pool.release(blocks)

    @rule(tenant=st.sampled_from(TENANTS))
    def flush(self, tenant: str) -> None:
        self.step()
        self.epochs[tenant] += 1
        self.pool.flush(TAGS[tenant], self.epochs[tenant])
        used = self.pool.left(TAGS[tenant], self.epochs[tenant])
        mine = {
            block
            for name, running in self.running.items()
            if self.of(running.cache_salt) == tenant
            for block in self.ids(name)
        }
        assert bool(used) == bool(mine - {0}) or self.held

    @rule(tenant=st.sampled_from(TENANTS), share=st.sampled_from(SHARES))
    def share(self, tenant: str, share: tuple[float, float]) -> None:
        self.pool.share(TAGS[tenant], *share)
        self.shares[TAGS[tenant]] = share

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        self.pool.evict_blocks(data.draw(st.sets(st.integers(1, BLOCKS - 1), max_size=4)))

    @rule()
    def reset(self) -> None:
        self.step()
        assert self.pool.reset_prefix_cache() is (not self.running and not self.held)

    # -- what holds

    @invariant()
    def the_free_queue_is_whole(self) -> None:
        queue = self.pool.free_block_queue
        ids = [block.block_id for block in queue.get_all_free_blocks()]
        assert len(ids) == len(set(ids)) == queue.num_free_blocks
        backwards, block = [], queue.fake_free_list_tail.prev_free_block
        while block is not queue.fake_free_list_head:
            backwards.append(block.block_id)
            block = block.prev_free_block
        assert backwards == ids[::-1]
        assert set(ids) == {one.block_id for one in self.pool.blocks[1:] if one.ref_cnt == 0}
        found = [self.pool.blocks[block].block_hash is not None for block in ids]
        assert found == sorted(found), "what can be found stands behind"

    @invariant()
    def references_are_counted(self) -> None:
        counts = Counter(self.held)
        for name in self.running:
            counts.update(block for block in self.ids(name) if block)
        assert {b.block_id: b.ref_cnt for b in self.pool.blocks[1:] if b.ref_cnt} == +counts

    @invariant()
    def what_is_found_may_be_kept_and_is_its_owners(self) -> None:
        idle = self.idle()
        mine: dict[str, list[int]] = {}
        for block, whose in idle.items():
            mine.setdefault(whose, []).append(block)
        for whose in TAGS.values():
            assert list(self.pool._shelves.of(whose)) == mine.get(whose, []), "in the queue's order"
            _, limit = self.shares.get(whose, (0.0, 1.0))
            assert len(mine.get(whose, [])) <= int(limit * self.pool.capacity)
        for block in self.pool.blocks[1:]:
            if block.block_hash is not None:
                assert self.pool._whose[block.block_id].keeps
                assert self.pool.cached_block_hash_to_block.contain(
                    block.block_hash, block.block_id
                )

    @invariant()
    def accounts_are_right(self) -> None:
        idle = Counter(self.idle().values())
        used: Counter[str] = Counter()
        for block in self.pool.blocks[1:]:
            whose = self.pool._whose[block.block_id].owner
            if block.ref_cnt and whose is not None:
                used[whose.tag] += 1
        expected = {whose: (idle[whose], used[whose]) for whose in idle.keys() | used.keys()}
        assert self.pool.holdings() == expected

    @invariant()
    def events_tell_what_is_found(self) -> None:
        for event in self.pool.take_events():
            if isinstance(event, BlockStored):
                self.stored.update((one, event.group_idx) for one in event.block_hashes)
            elif isinstance(event, BlockRemoved):
                self.stored.subtract((one, event.group_idx) for one in event.block_hashes)
            elif isinstance(event, AllBlocksCleared):
                self.stored.clear()
        found = Counter(
            (
                maybe_convert_block_hash(get_block_hash(block.block_hash)),
                get_group_id(block.block_hash),
            )
            for block in self.pool.blocks
            if block.block_hash is not None
        )
        assert +self.stored == found

    @invariant()
    def what_nobody_may_have_is_to_be_overwritten(self) -> None:
        ordered = set(self.pool._soil._since)
        for block in self.pool.blocks[1:]:
            if block.ref_cnt == 0 and block.block_id not in ordered:
                assert all(self.keeps(one) for one in self.bytes_of[block.block_id])

    def teardown(self) -> None:
        for name in list(self.running):
            self.finish_one(name)
        self.release()
        self.step()
        assert self.pool.get_num_free_blocks() == BLOCKS - 1, "no block is lost"
        for tenant in TENANTS:
            self.flush(tenant)
        mark = self.pool.mark()
        self.step()
        assert self.pool.clean_since(mark)
        assert not any(self.bytes_of), "nothing is left of anybody"
        assert self.pool.holdings() == {}

    # -- inside

    def pick(self, data: st.DataObject) -> str | None:
        return data.draw(st.sampled_from(sorted(self.running))) if self.running else None

    def ids(self, name: str) -> list[int]:
        return [block for table in self.manager.get_block_ids(name) for block in table]

    def idle(self) -> dict[int, str]:
        """Idle cached blocks and their owners, oldest first."""
        free = self.pool.free_block_queue.get_all_free_blocks()
        cached = [block.block_id for block in free if block.block_hash is not None]
        found = {block: self.pool._whose[block].owner for block in cached}
        return {block: whose.tag for block, whose in found.items() if whose is not None}

    def of(self, text: str) -> str | None:
        whose = owner(text)
        return None if whose is None else next(n for n, one in TAGS.items() if one == whose.tag)

    def keeps(self, text: str) -> bool:
        whose, tenant = owner(text), self.of(text)
        if whose is None or tenant is None:
            return False
        return whose.kept and whose.epoch >= self.epochs[tenant]

    def foreign(self, block: int, text: str) -> set[str]:
        """Bytes in a block, of others, that nobody may have."""
        return {one for one in self.bytes_of[block] - {text} if not self.keeps(one)}

    def write(self, block: int, text: str, *, whole: bool) -> None:
        assert not self.foreign(block, text) or block in self.pool._suspect
        self.bytes_of[block] = {text} if whole else self.bytes_of[block] | {text}

    def wipe(self, most: int) -> None:
        for block in self.pool.take_soiled(most):
            self.bytes_of[block].clear()

    def finish_one(self, name: str) -> None:
        self.step()
        self.manager.free(self.running.pop(name))

    def get_new_blocks(self, num_blocks: int) -> list[Any]:
        """As the pool's: what cannot be found goes first, then whose tenants borrowed most."""
        before, free = self.idle(), self.pool.get_num_free_blocks()
        taken = TenantPool.get_new_blocks(self.pool, num_blocks)
        gone = {block.block_id for block in taken} & before.keys()
        assert len(gone) == max(0, num_blocks - (free - len(before)))
        left = Counter(before.values())
        floors = {whose: self.shares.get(whose, (0.0, 1.0))[0] for whose in left}
        oldest_first = list(before)
        while gone:
            borrowed = {w: left[w] - int(floors[w] * self.pool.capacity) for w in left}
            most = max(borrowed.values())
            able = [w for w in left if most <= 0 or borrowed[w] == most]
            firsts = [next((b for b in oldest_first if before[b] == w), 0) for w in able]
            turn = [oldest_first[0]] if most <= 0 else firsts
            chosen = next((block for block in turn if block in gone), None)
            assert chosen is not None, "another one had to go before"
            gone.remove(chosen)
            oldest_first.remove(chosen)
            left[before[chosen]] -= 1
        return taken


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


OPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.booleans()), max_size=60)


@settings(max_examples=150, deadline=None)
@given(OPS, st.booleans())
def test_with_one_tenant_it_is_vllms_own(ops: list[tuple[int, int, bool]], sliding: bool) -> None:
    """The same blocks, hits, events and order, whatever is asked for."""
    plain, ours = manager(BLOCKS, sliding=sliding), manager(BLOCKS, sliding=sliding)
    adopt(ours.block_pool).share(TAGS["a"], 0.3, 1.0)
    running: list[tuple[Any, Any]] = []
    for number, (prompt, length, ends) in enumerate(ops):
        tokens = [prompt + 5 * position for position in range(length)]
        pair = [request(f"r{number}", tokens, salt(KEY, Scope("a", 0))) for _ in range(2)]
        results = []
        for one, engine in zip(pair, (plain, ours), strict=True):
            found, computed, _ = engine.get_computed_blocks(one)
            got = engine.allocate_slots(one, length - computed, computed, found)
            ids = got and engine.get_block_ids(one.request_id)
            results.append((computed, ids))
            if got:
                one.num_computed_tokens = length
        assert results[0] == results[1]
        if results[0][1]:
            running.append((pair[0], pair[1]))
        if running and (ends or not results[0][1]):
            first = running.pop(0)
            plain.free(first[0])
            ours.free(first[1])
        queues = [
            [block.block_id for block in engine.block_pool.free_block_queue.get_all_free_blocks()]
            for engine in (plain, ours)
        ]
        assert queues[0] == queues[1]
        assert plain.take_events() == ours.take_events()


def test_a_flooding_tenant_takes_nothing_from_a_quiet_one_within_its_floor() -> None:
    engine = manager(101, sliding=False)
    pool = adopt(engine.block_pool)
    pool.share(TAGS["a"], 0.2, 1.0)
    serve(engine, "a", range(10))  # 20 blocks
    serve(engine, "b", range(1000))
    assert pool.holdings() == {TAGS["a"]: (20, 0), TAGS["b"]: (80, 0)}
    serve(engine, "a", range(10), cached=4)


def test_above_its_limit_a_tenant_forgets_its_own_though_there_is_room() -> None:
    engine = manager(101, sliding=False)
    adopt(engine.block_pool).share(TAGS["b"], 0.0, 0.1)
    serve(engine, "b", range(20))
    assert engine.block_pool.holdings() == {TAGS["b"]: (10, 0)}
    serve(engine, "b", range(15, 20), cached=4)
    serve(engine, "b", range(5), cached=0)


def serve(engine: Any, tenant: str, prompts: range, cached: int | None = None) -> None:
    """Prompts of two blocks each; ``cached`` tokens of each are expected to be found."""
    for prompt in prompts:
        tokens = [prompt] * (2 * BLOCK)
        one = request(f"{tenant}{prompt}", tokens, salt(KEY, Scope(tenant, 0)))
        found, computed, _ = engine.get_computed_blocks(one)
        assert cached is None or computed == cached
        assert engine.allocate_slots(one, len(tokens) - computed, computed, found) is not None
        engine.free(one)


def test_the_same_block_cached_twice_is_forgotten_twice() -> None:
    engine = manager(9, sliding=False)
    pool = adopt(engine.block_pool)
    twins = [request(name, [1] * BLOCK, salt(KEY, Scope("a", 0))) for name in ("x", "y")]
    for twin in twins:
        assert engine.allocate_slots(twin, BLOCK) is not None
    for twin in twins:
        engine.free(twin)
    assert pool.holdings() == {TAGS["a"]: (2, 0)}
    assert pool.flush(TAGS["a"], 1) == 2
    assert len(pool.cached_block_hash_to_block) == 0
    assert len([e for e in pool.take_events() if isinstance(e, BlockRemoved)]) == 2
    assert len(pool.take_soiled(99)) == 2


def test_a_flush_overwrites_what_cannot_be_found_and_only_what_was_used() -> None:
    engine = manager(33, sliding=False)
    pool = adopt(engine.block_pool)
    partial = request("p", [1, 2], salt(KEY, Scope("b", 0)))
    assert engine.allocate_slots(partial, 2) is not None
    pool.claim(partial.cache_salt, engine.get_block_ids("p")[0])
    other = request("o", [1, 2], salt(KEY, Scope("c", 0)))
    assert engine.allocate_slots(other, 2) is not None
    pool.claim(other.cache_salt, engine.get_block_ids("o")[0])
    engine.free(partial)
    assert pool.take_soiled(99) == []
    assert pool.flush(TAGS["a"], 5) == 0
    assert len(pool.take_soiled(99)) == 1
    engine.free(other)  # It may hold old bytes of the tenant's in slots it has not written.
    assert len(pool.take_soiled(99)) == 1


def test_an_epoch_that_is_over_before_its_first_block_is_asked_for_keeps_nothing() -> None:
    engine = manager(9, sliding=False)
    pool = adopt(engine.block_pool)
    assert pool.flush(TAGS["a"], 5) == 0
    for epoch, kept in ((4, 0), (5, 1)):
        one = request("r", [1] * BLOCK, salt(KEY, Scope("a", epoch)))
        assert engine.allocate_slots(one, BLOCK) is not None
        pool.claim(one.cache_salt, engine.get_block_ids("r")[0])
        engine.free(one)
        assert len(pool.cached_block_hash_to_block) == kept
        assert len(pool.take_soiled(99)) == 1 - kept


def test_a_part_of_a_block_is_entered_as_little_as_a_whole_one() -> None:
    engine = manager(9, sliding=False)
    pool = adopt(engine.block_pool)
    for text, kept in ((one_shot(KEY, "a", 0), 0), (salt(KEY, Scope("a", 0)), 1)):
        one = request("r", [1] * (2 * BLOCK), text)
        (block,) = pool.get_new_blocks(1)
        pool.claim(text, [block.block_id])
        pool.cache_partial_block(one, block, BLOCK, 0, BLOCK)
        assert len(pool.cached_block_hash_to_block) == kept
        pool.free_blocks([block])


def test_only_vllms_plain_pool_is_adopted_and_only_once() -> None:
    pool = adopt(plain_pool(5))
    assert isinstance(pool, TenantPool)
    with pytest.raises(ConfigError, match="TenantPool"):
        adopt(pool)


def test_vllms_pool_has_no_other_ways_to_take_give_or_name_a_block() -> None:
    """What is not listed here was not thought of: look at it before this vLLM is used."""
    known = {
        "cache_full_blocks", "cache_partial_block", "get_new_blocks", "touch", "free_blocks",
        "evict_blocks", "reset_prefix_cache", "_maybe_evict_cached_block",  # done otherwise
        "move_block_hashes", "unpin_blocks",  # of models whose groups are refused
        "get_cached_block", "is_block_writable", "get_num_free_blocks", "get_usage", "take_events",
        "emit_cached_block_events", "_build_block_stored_event", "_emit_block_removed_events",
        "_get_partial_block_hash", "_get_partial_block_parent_hash_and_start",
        "_remove_cached_block_hashes", "_insert_block_hash", "_notify_reuse", "__init__",
    }  # fmt: skip
    own = {name for name, one in vars(BlockPool).items() if inspect.isfunction(one)}
    assert own == known


def test_of_several_ranks_the_slowest_counts() -> None:
    assert CarriedOut(3).aggregate(CarriedOut(2)).number == 2
    assert CarriedOut(2).aggregate(CarriedOut(3)).number == 2


def test_new_blocks_are_read_from_vllms_own_output() -> None:
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

    cached = CachedRequestData.make_empty()
    cached.req_ids, cached.new_block_ids = ["a", "b"], [([1], [2, 3]), None]
    output = SchedulerOutput.make_empty()
    output.scheduled_cached_reqs = cached
    assert list(new_blocks(output)) == [("a", [1]), ("a", [2, 3])]


def test_vllm_hands_a_connector_its_pool_and_keeps_stepping_while_the_connector_wants_it() -> None:
    from types import SimpleNamespace

    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
    from vllm.v1.core.sched.scheduler import Scheduler

    given: list[Any] = []
    connector = SimpleNamespace(
        bind_gpu_block_pool=given.append, has_pending_push_work=lambda: bool(given)
    )
    idle = SimpleNamespace(
        has_unfinished_requests=lambda: False,
        has_finished_requests=lambda: False,
        connector=connector,
        ec_connector=None,
    )
    assert not Scheduler.has_requests(idle)
    KVConnectorBase_V1.bind_kv_cache_manager(connector, SimpleNamespace(block_pool="the pool"))
    assert given == ["the pool"]
    assert Scheduler.has_requests(idle)


def test_what_ranks_have_carried_out_comes_back_with_their_output() -> None:
    from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
    from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

    told = [KVConnectorOutput(kv_connector_worker_meta=CarriedOut(n)) for n in (5, 4)]
    outputs = [ModelRunnerOutput.with_kv_conn_output_only(one) for one in told]
    assert all(output.kv_connector_output is not None for output in outputs)
    whole = KVOutputAggregator(expected_finished_count=2).aggregate(outputs)
    assert whole.kv_connector_output.kv_connector_worker_meta.number == 4
