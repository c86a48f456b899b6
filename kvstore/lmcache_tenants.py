"""LMCache's memory with tenants in it: who may use what, who gives way to whom, what is wiped.

LMCache's L1 knows no tenants. What its handlers do with objects they do through a few methods of
its manager, and these are replaced here::

    lookup ─▶ reserve_read ─┐              not there, for a salt that may not be used any more
    load ───▶ unsafe_read ──┤
    store ──▶ reserve_write ┤ ─▶ LMCache's room is made first: own objects above the tenant's limit,
         └──▶ finish_write ─┘               then those of whoever has most above its floor
                                            what may not be kept, or was never filled, is dropped

A store is made room for before anybody else's is let in, so who floods the tier loses its own and
nobody's store fails for it. It does fail where all that others have above their floors is being
read or written at that moment. Beside that a thread keeps some memory free, so that stores seldom
wait, and removes what is flushed.

Locks: a reservation's, then LMCache's, then ``_lock``; whoever has a later one takes no earlier.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from lmcache.v1.distributed.error import L1Error

from kvstore.clock import Clock
from kvstore.lmcache_memory import Key, L1Manager, L1Memory, Layout
from kvstore.messages import Standing, Usage, Wiped
from kvstore.salts import owner
from kvstore.tier_tenants import TierTenants

Answers: TypeAlias = dict[Key, Any]
"""What L1's methods return: for every key an error, and with some of them an object."""

SPARE = 1 / 16
"""Of the memory, so much is kept free."""

BATCH_BYTES = 8 << 20
"""So much is overwritten at a time, with LMCache's lock held."""

TICK_SECONDS = 0.25
AGAIN_SECONDS = 1.0
_ROUNDS = 4
_STOP_SECONDS = 5.0

log = logging.getLogger(__name__)


class LMCacheTenants:
    """Stands between one L1 manager and all who use it, from the start.

    ``settle_seconds``: so long after it was told to stop, an engine may still write what it had
    reserved. Any thread may call any method.
    """

    def __init__(self, manager: L1Manager, settle_seconds: float, clock: Clock) -> None:
        self._memory = L1Memory(manager)
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._reserving = threading.Lock()
        self._lock = threading.Lock()
        self._tenants: TierTenants[Key] = TierTenants(self._memory.capacity)
        self._written: dict[Key, float] = {}
        self._wiped: list[Wiped] = []
        self._woken = threading.Event()
        self._stopping = False
        self._evictable: Callable[[Key], bool] = manager.is_key_evictable
        self._reserve_read = manager.reserve_read
        self._unsafe_read = manager.unsafe_read
        self._finish_read = manager.finish_read
        self._reserve_write = manager.reserve_write
        self._finish_write = manager.finish_write
        self._drop_write = manager.finish_write_and_delete
        self._delete = manager.delete
        manager.reserve_read = self.reserve_read
        manager.unsafe_read = self.unsafe_read
        manager.reserve_write = self.reserve_write
        manager.finish_write = self.finish_write
        manager.clear = self.clear
        self._thread = threading.Thread(target=self._run, name="kvferry-tier-tenants", daemon=True)

    def start(self) -> None:
        """Begins to keep memory free and to remove what is flushed."""
        self._thread.start()

    def close(self) -> None:
        """Stops that."""
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    # -- what holds, and what is there

    def stand(self, standings: Iterable[Standing]) -> None:
        """These hold from now on; what is flushed thereby is not found any more.

        Raises WireError for one tenant too many.
        """
        now = self._clock()
        try:
            with self._lock:
                self._tenants.stand(standings, now)
        finally:
            self._woken.set()

    def flushed(self) -> list[Standing]:
        """What holds for tenants of whom something was flushed."""
        with self._lock:
            return self._tenants.flushed()

    def usage(self) -> list[Usage]:
        """The memory's bytes, and what is held of each tenant."""
        with self._lock:
            return self._tenants.usage()

    def wiped(self) -> list[Wiped]:
        """The flushes that are done since the last call."""
        with self._lock:
            done, self._wiped = self._wiped, []
        return done

    # -- what LMCache tells

    def touched(self, keys: list[Key]) -> None:
        """These have been used: a prompt's beginning stays longer than its end."""
        with self._lock:
            self._tenants.touch(reversed(keys))

    def written(self, keys: list[Key]) -> None:
        """Nobody writes these any more."""
        with self._lock:
            for key in keys:
                self._written.pop(key, None)

    def gone(self, keys: list[Key]) -> None:
        """These have been removed."""
        with self._lock:
            self._tenants.gone(keys)
            for key in keys:
                self._written.pop(key, None)

    # -- in the place of L1's own methods

    def reserve_read(self, keys: list[Key], read_locks: int = 1) -> Answers:
        """As L1's: what may not be used is not there."""
        usable, refused = self._sorted(keys)
        answers: Answers = self._reserve_read(usable, read_locks)
        return {**answers, **_absent(refused)}

    def unsafe_read(self, keys: list[Key]) -> Answers:
        """As L1's: what may not be used is not there, and unlocked as what is not there."""
        usable, refused = self._sorted(keys)
        if refused:
            self._finish_read(refused)
        answers: Answers = self._unsafe_read(usable)
        return {**answers, **_absent(refused)}

    def finish_write(self, keys: list[Key], tag: str = "") -> dict[Key, Any]:
        """As L1's: what may not be kept, or was reserved and never filled, is dropped."""
        usable, dropped = self._sorted(keys)
        filled: list[Key] = []
        for key in usable:
            (dropped if self._memory.is_blank(key, tag) else filled).append(key)
        return {**self._drop_write(dropped, tag), **self._finish_write(filled, tag)}

    def clear(self, force: bool = False) -> None:
        """As L1's, in batches: its lock is not held while all memory is overwritten."""
        for batch in self._batches(self._memory.keys()):
            self._delete(batch, force)

    def reserve_write(
        self, keys: list[Key], is_temporary: list[bool], layout_desc: Layout, tag: str = ""
    ) -> Answers:
        """As L1's, within the limit of the keys' tenant and with room made for them."""
        usable, refused = self._sorted(keys)
        answers: Answers = dict.fromkeys(refused, (L1Error.KEY_NOT_WRITABLE, None))
        temporary = dict(zip(keys, is_temporary, strict=True))

        def ask(some: list[Key]) -> Answers:
            flags = [temporary[key] for key in some]
            return dict(self._reserve_write(some, flags, layout_desc, tag))

        size = self._memory.size_of(layout_desc)
        for salt in dict.fromkeys(key.cache_salt for key in usable):
            answers |= self._let([key for key in usable if key.cache_salt == salt], size, ask)
        return answers

    def _let(self, keys: list[Key], size: int, ask: Callable[[list[Key]], Answers]) -> Answers:
        """Makes room for these objects of one salt, each of ``size``, and reserves them."""
        whose = owner(keys[0].cache_salt)
        assert whose is not None
        with self._reserving:
            with self._lock:
                new = [key for key in keys if key not in self._tenants]
            most = self._within_limit(whose.tag, len(new), size)
            beyond = set(new[most:])
            asked = [key for key in keys if key not in beyond]
            wanted = most * size
            self._free_up(whose.tag, wanted, wanted - self._memory.free)
            answers = ask(asked)
            for more in range(_ROUNDS):
                lacking = [key for key in asked if answers[key][0] == L1Error.OUT_OF_MEMORY]
                # Free memory may lie in pieces that are too small.
                if not lacking or not self._free_up(whose.tag, wanted, wanted << more):
                    break
                answers |= ask(lacking)
            self._note({key: found for key, (_, found) in answers.items() if found is not None})
        return answers | dict.fromkeys(beyond, (L1Error.OUT_OF_MEMORY, None))

    def _within_limit(self, tag: str, count: int, size: int) -> int:
        """How many of ``count`` objects the tenant may have besides; its oldest go for them."""
        with self._lock:
            wanted = min(count, self._tenants.limit(tag) // size)
            going = self._tenants.outgrown(tag, wanted * size, self._is_free)
        self._remove(going)
        with self._lock:
            return min(wanted, max(0, self._tenants.room(tag)) // size)

    def _free_up(self, tag: str, wanted: int, size: int) -> bool:
        """Frees ``size`` for a tenant that wants so much; whether it has freed anything."""
        with self._lock:
            going = self._tenants.borrowed(size, self._is_free, tag, wanted)
        self._remove(going)
        return bool(going)

    def _note(self, reserved: dict[Key, Any]) -> None:
        now = self._clock()
        with self._lock:
            for key, found in reversed(reserved.items()):
                self._tenants.put(key.cache_salt, key, found.get_physical_size())
                self._written[key] = now
        if self._memory.free < self._spare:
            self._woken.set()

    def _sorted(self, keys: Iterable[Key]) -> tuple[list[Key], list[Key]]:
        """Those whose salt may be used, and the others."""
        usable: list[Key] = []
        refused: list[Key] = []
        with self._lock:
            for key in keys:
                (usable if self._tenants.allows(key.cache_salt) else refused).append(key)
        return usable, refused

    # -- the thread

    @property
    def _spare(self) -> int:
        return int(self._memory.capacity * SPARE)

    def _run(self) -> None:
        while not self._stopping:
            self._woken.wait(TICK_SECONDS)
            self._woken.clear()
            try:
                self.turn()
            except Exception:
                # Its flushes stay untold until a later turn has done them.
                log.exception("the DRAM tier's memory was not tidied; again in %g s", AGAIN_SECONDS)
                time.sleep(AGAIN_SECONDS)

    def turn(self) -> None:
        """What is due: lapsed writers, flushed objects, limits that were lowered, spare memory."""
        self._remove(self._lapsed())
        self._wipe()
        with self._lock:
            outgrowing = self._tenants.outgrowing()
        for tag in outgrowing:
            with self._lock:
                going = self._tenants.outgrown(tag, 0, self._is_free)
            self._remove(going)
        while (size := self._spare - self._memory.free) > 0 and not self._stopping:
            with self._lock:
                going = self._tenants.borrowed(min(size, BATCH_BYTES), self._is_free)
            if not going:
                return
            self._remove(going)

    def _lapsed(self) -> list[Key]:
        """What was reserved and never finished: LMCache frees it only for others' sake."""
        before = self._clock() - self._memory.write_seconds
        with self._lock:
            return [key for key, since in self._written.items() if since < before]

    def _wipe(self) -> None:
        """What nobody may use goes; what is in use is overwritten at once, and goes later."""
        with self._lock:
            over = self._tenants.over()
        used = self._remove(over)
        with self._lock:
            used = self._tenants.unwiped(used)
        for batch in self._batches(used):
            now = self._clock()
            self._memory.overwrite(batch)
            with self._lock:
                self._tenants.overwritten(key for key in batch if self._is_settled(key, now))
        with self._lock:
            self._wiped += self._tenants.wiped(self._clock())

    def _is_settled(self, key: Key, now: float) -> bool:
        """Whether nobody writes that object any more, as far as engines keep their time."""
        since = self._written.get(key)
        return since is None or now - since > self._settle_seconds

    def _is_free(self, key: Key) -> bool:
        """Whether nobody uses that object; LMCache looks again when it is told to delete it."""
        return self._evictable(key) or not self._memory.holds(key)

    def _remove(self, keys: list[Key]) -> list[Key]:
        """Removes these; returns those that are in use."""
        used = []
        for batch in self._batches(keys):
            done = self._delete(batch)
            locked = [key for key in batch if done[key] == L1Error.KEY_IS_LOCKED]
            with self._lock:
                for key in locked:
                    self._tenants.stay(key)
                # Of what it has removed LMCache has told by now, and some may be there anew.
                self._tenants.left(k for k in batch if done[k] == L1Error.KEY_NOT_EXIST)
            used += locked
        return used

    def _batches(self, keys: Iterable[Key]) -> Iterator[list[Key]]:
        """As many of these at a time as are overwritten in one go."""
        batch: list[Key] = []
        total = 0
        for key in keys:
            with self._lock:
                size = self._tenants.size(key)
            if batch and total + size > BATCH_BYTES:
                yield batch
                batch, total = [], 0
            batch.append(key)
            total += size
        if batch:
            yield batch


def _absent(keys: Iterable[Key]) -> Answers:
    return dict.fromkeys(keys, (L1Error.KEY_NOT_EXIST, None))
