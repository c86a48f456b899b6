"""vLLM's block pool, with an eye on whose every block is. The only file that knows its insides.

vLLM keeps free blocks in one queue: those without a hash at the front, then those that can be
found again (*idle cached* here), oldest first, and gives away from the front. That makes one cache
of all tenants, which a busy one fills alone. :func:`adopt` makes a :class:`TenantPool` of the
engine's own pool, in place. What it does otherwise:

* A tenant above its limit of idle cached blocks forgets its own oldest at once.
* Where only cached blocks are left to give, those of whoever has borrowed most go first
  (:mod:`kvstore.shelves`), its oldest first. With one tenant that is vLLM's own order.
* A block of a request of which nothing may be kept is never entered into the cache: neither while
  the request runs nor after. That is a request whose salt names no owner, an epoch that is over, or
  an owner who keeps nothing.
* Such a request's blocks are *soiled* once they are free, and so are a flushed tenant's. They can
  be given away again at once; the engine's worker overwrites them before the next forward pass.

What it costs: on a busy AMD EPYC 4 to 5 µs per block where vLLM takes 8 to 10 to give it away,
enter it into the cache and take it back, and 6 to 8 where several tenants fill the pool (``python
-m tests.support.pool_cost``). To compute a block takes a GPU about a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
from vllm.v1.core.block_pool import BlockPool

from kvstore.errors import ConfigError
from kvstore.salts import Owner, owner
from kvstore.shelves import Shelves
from kvstore.soil import Soil

_SPARE_ACCOUNTS = 4096


class CarriedOut(KVConnectorWorkerMetadata):
    """What a worker half tells with a step's output: it has carried out wipes up to ``number``."""

    def __init__(self, number: int) -> None:
        self.number = number

    def aggregate(self, other: KVConnectorWorkerMetadata) -> CarriedOut:
        """Of several ranks: what all of them have done."""
        assert isinstance(other, CarriedOut)
        return self if self.number <= other.number else other


class _Account:
    """Blocks of one owner: ``used`` by requests, and ``idle`` ones that can be found again."""

    __slots__ = ("idle", "keeps", "owner", "used")

    def __init__(self, whose: Owner | None, *, keeps: bool) -> None:
        self.owner = whose
        self.keeps = keeps
        self.used = 0
        self.idle = 0


class TenantPool(BlockPool):
    """vLLM's pool, once ``adopt`` has made one of these of it. For the scheduler's thread."""

    # -- for the connectors

    @property
    def capacity(self) -> int:
        """Blocks in all, without vLLM's null block."""
        return int(self.num_gpu_blocks) - 1

    @property
    def changes(self) -> int:
        """Differs once ``holdings`` may do so."""
        return self._changes

    @property
    def soiled(self) -> int:
        """How many blocks are to be overwritten."""
        return len(self._soil)

    def hold(self, block_ids: Sequence[int]) -> None:
        """These blocks, in use now, are given to nobody until they are released; it is counted."""
        self.touch([self.blocks[block] for block in block_ids])

    def release(self, block_ids: Sequence[int]) -> None:
        """Undo ``hold``."""
        # The last blocks of a prompt are the first to go: a hit needs those before them.
        self.free_blocks([self.blocks[block] for block in reversed(block_ids)])

    def share(self, tag: str, floor: float, limit: float) -> None:
        """From now on these parts of the capacity are the tenant's floor and limit."""
        self._changes += 1
        self._shelves.share(tag, floor, limit)
        self._trim(tag)

    def claim(self, salt: str | None, block_ids: Iterable[int]) -> None:
        """A request with this ``salt`` has got these blocks, which it may share with others."""
        account = self._account(owner(salt or ""))
        self._take(account, (self.blocks[block] for block in block_ids))

    def flush(self, tag: str, epoch: int) -> int:
        """Nothing of the tenant from before ``epoch`` is found any more, or kept from now on.

        Returns how many of its blocks could be found or were in use, of what it kept. The idle ones
        are soiled, and so is every free block that cannot be found, since it may hold anybody's old
        bytes. Blocks in use are soiled when they are free: the tenant's own, and others' of which
        only a part has been written.
        """
        if epoch <= self._epochs.get(tag, 0):
            return 0
        self._epochs[tag] = epoch
        self._changes += 1
        older = [account for account in self._older(tag, epoch) if account.keeps]
        for account in older:
            account.keeps = False
        count = sum(account.used + account.idle for account in older)
        found = [self.blocks[at] for at in self._shelves.of(tag) if not self._whose[at].keeps]
        self._forget(found)
        for block in self.blocks:
            if block.ref_cnt > 0 and not block.is_null:
                self._flush_used(block)
        for number in self.free_uncached():
            self._soil.add(number)
        return count

    def left(self, tag: str, epoch: int) -> int:
        """Blocks of the tenant from before ``epoch`` that are still in use."""
        return sum(account.used for account in self._older(tag, epoch))

    def free_uncached(self) -> list[int]:
        """Free blocks that cannot be found, but for those never used or overwritten since."""
        found = []
        for block in self.free_block_queue.iter_blocks_after(None):
            if block.block_hash is not None:
                break
            if self._written[block.block_id]:
                found.append(block.block_id)
        return found

    def take_soiled(self, most: int) -> list[int]:
        """Blocks to overwrite before the next forward pass.

        All that have been given away again, and ``most`` of those that are free.
        """
        if not self._soil:
            return []
        taken = self._soil.take(most, lambda number: bool(self.blocks[number].ref_cnt))
        for number in taken:
            self._written[number] = bool(self.blocks[number].ref_cnt)
        return taken

    def mark(self) -> int:
        """What is soiled by now is what ``clean_since`` of this asks for."""
        return self._soil.mark()

    def clean_since(self, mark: int) -> bool:
        """Whether all that was soiled at ``mark`` has been taken."""
        return self._soil.clean_since(mark)

    def holdings(self) -> dict[str, tuple[int, int]]:
        """For each tag: idle cached blocks, and used ones."""
        found: dict[str, tuple[int, int]] = {}
        for account in self._accounts.values():
            if account.owner is not None and (account.idle or account.used):
                idle, used = found.get(account.owner.tag, (0, 0))
                found[account.owner.tag] = idle + account.idle, used + account.used
        return found

    # -- what vLLM calls

    def cache_full_blocks(  # noqa: PLR0913, PLR0917 - the signature is vLLM's
        self,
        request: Any,
        blocks: list[Any],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: list[bool] | None = None,
    ) -> None:
        """See BlockPool. What may not be kept is never entered."""
        account = self._account(owner(request.cache_salt or ""))
        if not account.keeps:
            return
        super().cache_full_blocks(
            request,
            blocks,
            num_cached_blocks,
            num_full_blocks,
            block_size,
            kv_cache_group_id,
            block_mask,
        )
        self._take(account, blocks[num_cached_blocks:num_full_blocks])

    def cache_partial_block(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """See BlockPool. What may not be kept is never entered."""
        if not self._account(owner(request.cache_salt or "")).keeps:
            return None
        return super().cache_partial_block(request, *args, **kwargs)

    def get_new_blocks(self, num_blocks: int) -> list[Any]:
        """See BlockPool. Cached blocks go tenant by tenant, see the module."""
        self._changes += 1
        free = self.get_num_free_blocks()
        plain = min(num_blocks, free - len(self._shelves))
        if num_blocks > free or plain == num_blocks:
            taken = super().get_new_blocks(num_blocks)
        else:
            taken = super().get_new_blocks(plain)
            self._bring_forward(num_blocks - plain)
            taken += super().get_new_blocks(num_blocks - plain)
        for block in taken:
            self._written[block.block_id] = 1
        return taken  # type: ignore[no-any-return]

    def touch(self, blocks: Sequence[Any]) -> None:
        """See BlockPool."""
        self._changes += 1
        for block in blocks:
            if block.ref_cnt == 0 and self._shelves.remove(block.block_id):
                account = self._whose[block.block_id]
                account.idle -= 1
                account.used += 1
        super().touch(blocks)

    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None:
        """See BlockPool. Idle cached blocks join their tenant's shelf; others may be soiled."""
        self._changes += 1
        blocks = list(ordered_blocks)
        super().free_blocks(blocks)
        to_forget, tags = [], set()
        for block in blocks:
            number = block.block_id
            if block.ref_cnt or block.is_null or number in self._shelves:
                continue
            account = self._whose[number]
            account.used -= 1
            if block.block_hash is None:
                self._lay_off(number, account)
            elif account.keeps and account.owner is not None:
                self._shelves.put(account.owner.tag, number, 1)
                account.idle += 1
                self._suspect.discard(number)
                tags.add(account.owner.tag)
            else:
                to_forget.append(block)
                self._lay_off(number, account)
        self._forget(to_forget)
        for tag in tags:
            self._trim(tag)

    def evict_blocks(self, block_ids: set[int]) -> None:
        """See BlockPool. Blocks that cannot be found stand before those that can."""
        idle = [self.blocks[block] for block in block_ids if block in self._shelves]
        super().evict_blocks(block_ids)
        self._to_front(idle)

    def reset_prefix_cache(self) -> bool:
        """See BlockPool."""
        if not super().reset_prefix_cache():
            return False
        for number in range(len(self.blocks)):
            self._off_shelf(number)
        return True

    def _maybe_evict_cached_block(self, block: Any) -> bool:
        """vLLM's one way to forget a block, wherever it is."""
        self._off_shelf(block.block_id)
        return bool(super()._maybe_evict_cached_block(block))

    # -- inside

    def _adopt(self) -> None:
        self._shelves: Shelves[int] = Shelves(self.capacity)
        self._epochs: dict[str, int] = {}
        self._accounts: dict[Owner | None, _Account] = {}
        # Of blocks that nobody has claimed, or that are free and cannot be found; not counted.
        self._nobody = _Account(None, keeps=False)
        self._whose: list[_Account] = [self._nobody] * len(self.blocks)
        self._written = bytearray(len(self.blocks))
        self._suspect: set[int] = set()
        self._soil = Soil()
        self._changes = 0

    def _account(self, whose: Owner | None) -> _Account:
        account = self._accounts.get(whose)
        if account is None:
            if len(self._accounts) > len(self.blocks) + _SPARE_ACCOUNTS:
                self._accounts = {
                    one: kept for one, kept in self._accounts.items() if kept.used or kept.idle
                }
            keeps = (
                whose is not None and whose.kept and whose.epoch >= self._epochs.get(whose.tag, 0)
            )
            account = self._accounts[whose] = _Account(whose, keeps=keeps)
        return account

    def _older(self, tag: str, epoch: int) -> Iterator[_Account]:
        for whose, account in self._accounts.items():
            if whose is not None and whose.tag == tag and whose.epoch < epoch:
                yield account

    def _take(self, account: _Account, blocks: Iterable[Any]) -> None:
        """``blocks`` that are in use are this account's."""
        for block in blocks:
            before = self._whose[block.block_id]
            if before is not account and block.ref_cnt and not block.is_null:
                before.used -= 1
                account.used += 1
                self._whose[block.block_id] = account

    def _bring_forward(self, count: int) -> None:
        """The next ``count`` blocks to be given away, all of them cached, stand at the front."""
        if len(self._shelves.kept) == 1:
            return  # The only tenant's are in order.
        queue = self.free_block_queue
        head, moved = queue.fake_free_list_head.next_free_block, []
        for _ in range(count):
            tag = self._shelves.borrower()
            if tag is None:  # Each is within its floor: as vLLM has it, the oldest of all goes.
                break
            block = self.blocks[next(self._shelves.of(tag))]
            self._off_shelf(block.block_id)
            if block is head:
                head = block.next_free_block
            else:
                queue.remove(block)
                moved.append(block)
        queue.prepend_n(moved)

    def _trim(self, tag: str) -> None:
        excess = self._shelves.excess(tag)
        if excess:
            oldest = islice(self._shelves.of(tag), excess)
            self._forget([self.blocks[number] for number in oldest])

    def _forget(self, blocks: list[Any]) -> None:
        """Free blocks are found no more, and stand at the front."""
        for block in blocks:
            self._maybe_evict_cached_block(block)
        self._to_front(blocks)

    def _to_front(self, blocks: list[Any]) -> None:
        for block in blocks:
            self.free_block_queue.remove(block)
        self.free_block_queue.prepend_n(blocks)

    def _off_shelf(self, number: int) -> None:
        """An idle block that is found no more; soiled where its owner keeps nothing."""
        if self._shelves.remove(number):
            account = self._whose[number]
            account.idle -= 1
            self._lay_off(number, account)

    def _lay_off(self, number: int, account: _Account) -> None:
        """A free block can be found by nobody."""
        self._whose[number] = self._nobody
        if not account.keeps or number in self._suspect:
            self._soil.add(number)
            self._suspect.discard(number)

    def _flush_used(self, block: Any) -> None:
        if block.block_hash is None:
            self._suspect.add(block.block_id)
        elif not self._whose[block.block_id].keeps:
            self._maybe_evict_cached_block(block)


def adopt(pool: BlockPool) -> TenantPool:
    """``pool``, made a ``TenantPool`` in place; nothing may have been given away from it yet.

    Raises ConfigError for a pool that is not vLLM's plain one.
    """
    if type(pool) is not BlockPool:
        raise ConfigError(f"a block pool of kind {type(pool).__name__} knows no tenants")
    pool.__class__ = TenantPool
    assert isinstance(pool, TenantPool)
    pool._adopt()
    return pool


def new_blocks(output: Any) -> Iterator[tuple[str, list[int]]]:
    """Of a vLLM ``SchedulerOutput``: the blocks that running requests have got with this step."""
    cached = output.scheduled_cached_reqs
    for request, groups in zip(cached.req_ids, cached.new_block_ids, strict=True):
        for blocks in groups or ():
            yield request, blocks
