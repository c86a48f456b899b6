"""The DRAM tier over LMCache's server (multi-process mode), and its scheduler's side.

The scheduler asks through a thread of its own, so that it never waits: errands go out in one
queue, answers come back into the ledger, and ``poll`` reads them there.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from typing import Any, TypeAlias

from kvstore.clock import Clock
from kvstore.cluster import Dram, WorkerSettings
from kvstore.engine_facts import engine_version
from kvstore.errors import TierDown
from kvstore.layout import KVGroup, KVLayout
from kvstore.lmcache_filing import window_prompt
from kvstore.lmcache_tier_link import ChunksKey, Link, Naming
from kvstore.lmcache_tier_worker import (
    ATTEMPT_SECONDS,
    FIRST_PAUSE_SECONDS,
    HEARTBEAT_SECONDS,
    LAST_PAUSE_SECONDS,
    LMCacheCopy,
)
from kvstore.tier import Health, NoCopy, NoLookup, TierCopy, TierKey, TierLookup
from kvstore.tier_lookup import Ask, LookupLedger, Release
from kvstore.tier_seal import Scope
from kvstore.tier_shape import TierShape

log = logging.getLogger("kvferry.tier")

LOOKUP_LIMIT = 4096
WINDOW_TRIES = 16
"""Chunk ends at which a window is looked for, from the last one backwards.

Windows are kept at prompts' ends only, so most misses are shared beginnings of longer prompts.
"""

EngineConfig: TypeAlias = Any
"""vLLM's configuration; vLLM itself is not imported here."""


def open_lookup(
    settings: WorkerSettings, vllm_config: EngineConfig, groups: tuple[KVGroup, ...]
) -> TierLookup:
    """The scheduler's side of the tier these settings describe. Raises ConfigError."""
    if not _keeps(settings, groups):
        return NoLookup()
    ranks = vllm_config.parallel_config.tensor_parallel_size
    naming = Naming(namespace(settings.model_name, vllm_config), ranks)
    shape = TierShape(groups, vllm_config.cache_config.block_size, settings.dram.chunk_tokens)
    return LMCacheLookup(settings.dram, naming, shape)


def open_copy(settings: WorkerSettings, vllm_config: EngineConfig, layout: KVLayout) -> TierCopy:
    """The worker's side, for pages of this layout. Raises ConfigError."""
    if not _keeps(settings, layout.groups):
        return NoCopy()
    naming = Naming(namespace(settings.model_name, vllm_config), layout.ranks)
    scope = Scope(naming.namespace, layout.fingerprint, layout.rank, layout.ranks)
    shape = TierShape(layout.groups, layout.block_size, settings.dram.chunk_tokens)
    return LMCacheCopy(settings.dram, settings.worker, naming, scope, shape)


def _keeps(settings: WorkerSettings, groups: tuple[KVGroup, ...]) -> bool:
    """Whether there is a tier for such a model.

    One without full attention has no chunks that a lookup could follow from a prompt's start.
    """
    return settings.dram.enabled and any(group.window is None for group in groups)


def namespace(model_name: str, vllm_config: EngineConfig) -> str:
    """The model name LMCache is given: with all that its own key leaves out.

    Both sides must come to the same name, so it holds what both can see; the seal holds the rest.
    """
    model, cache = vllm_config.model_config, vllm_config.cache_config
    facts = (
        model_name,
        model.revision or "",
        model.hf_config.to_json_string(),
        str(model.dtype),
        cache.cache_dtype,
        cache.block_size,
        engine_version(),
    )
    return f"kvferry-{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}"


class LMCacheLookup:
    """``TierLookup`` over LMCache. ``_changed`` guards all that is shared, for microseconds."""

    def __init__(
        self, dram: Dram, naming: Naming, shape: TierShape, clock: Clock = time.monotonic
    ) -> None:
        self._dram = dram
        self._shape = shape
        self._naming = naming
        self._clock = clock
        self._attempt = min(ATTEMPT_SECONDS, dram.operation_seconds)
        self._pause = FIRST_PAUSE_SECONDS
        self._changed = threading.Condition()
        self._ledger = LookupLedger(dram.chunk_tokens, dram.lookup_seconds, LOOKUP_LIMIT)
        self._asks: deque[Ask] = deque()
        self._releases: deque[Release] = deque(maxlen=LOOKUP_LIMIT)
        self._health: Health | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="kvferry-tier-lookup", daemon=True)
        self._thread.start()

    # -- the scheduler's thread

    @property
    def chunk_tokens(self) -> int:
        """See ``TierLookup``."""
        return self._dram.chunk_tokens

    def start(self, key: TierKey) -> None:
        """See ``TierLookup``."""
        with self._changed:
            if self._health != "up":
                return
            if ask := self._ledger.start(key, self._clock()):
                self._asks.append(ask)
                self._changed.notify()

    def poll(self, request: str) -> int | None:
        """See ``TierLookup``."""
        with self._changed:
            held = self._ledger.poll(request, self._clock())
            return 0 if held and self._health != "up" else held

    def keep(self, request: str, start: int, end: int) -> None:
        """See ``TierLookup``."""
        with self._changed:
            self._order(self._ledger.keep(request, start, end))

    def end(self, request: str) -> None:
        """See ``TierLookup``."""
        with self._changed:
            self._order(self._ledger.end(request))

    def close(self) -> None:
        """See ``TierLookup``. What can be unlocked at once is."""
        with self._changed:
            self._releases.extend(self._ledger.end_all())
            self._closing = True
            self._changed.notify()
        self._thread.join(self._dram.operation_seconds + self._attempt)

    def _order(self, release: Release | None) -> None:
        if release is not None:
            self._releases.append(release)
            self._changed.notify()

    # -- the tier's thread

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    self._connect()
                except TierDown as error:
                    self._go_down(str(error))
                self._rest()
        except Exception:
            log.exception("the DRAM tier's lookups have failed for good")
            self._go_down("its thread has failed")

    def _rest(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._pause)
        self._pause = min(2 * self._pause, LAST_PAUSE_SECONDS)

    def _connect(self) -> None:
        """Run errands over one connection until it is lost (TierDown) or we are closed."""
        link = Link(self._dram.port, lambda: self._closing)
        try:
            link.require_chunk(self._dram.chunk_tokens, self._attempt)
            self._go_up()
            while True:
                errand = self._next()
                if isinstance(errand, Ask):
                    self._ask(link, errand)
                elif errand is not None:
                    self._release(link, errand)
                elif self._closing:
                    return
                else:
                    link.ping(self._attempt)
        finally:
            link.close()

    def _next(self) -> Ask | Release | None:
        """The next errand, lookups first: somebody waits for them. None: nothing to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._asks or self._releases or self._closing, HEARTBEAT_SECONDS
            )
            if self._asks:
                return self._asks.popleft()
            return self._releases.popleft() if self._releases else None

    def _ask(self, link: Link, ask: Ask) -> None:
        """Both calls at once: LMCache's server runs those of a connection in order, one by one."""
        seconds = self._dram.lookup_seconds
        registered = link.client.lookup(self._key(ask, (0, ask.end)), 1)
        found = link.client.wait_prefetch_status(ask.session, seconds)
        link.call(registered, seconds)
        held = (link.call(found, seconds) or 0) * self._dram.chunk_tokens
        if held and self._shape.windowed:
            held = self._resumable(link, ask, held)
        with self._changed:
            self._order(self._ledger.answered(ask.session, held))

    def _resumable(self, link: Link, ask: Ask, held: int) -> int:
        """The last chunk's end up to ``held`` whose window is held, too: that one is then locked.

        0: none; the ledger then unlocks all that was asked for. Chunks beyond it are unlocked here.
        """
        chunk, until = self._dram.chunk_tokens, self._clock() + self._dram.lookup_seconds
        ends = range(held, max(0, held - WINDOW_TRIES * chunk), -chunk)
        end = next((at for at in ends if self._window_held(link, ask, at, until)), 0)
        if 0 < end < held:
            freed = link.client.free_lookup_locks(self._key(ask, (end, held)), 1)
            link.call(freed, self._attempt)
        return end

    def _window_held(self, link: Link, ask: Ask, end: int, until: float) -> bool:
        left = until - self._clock()
        if left <= 0:
            return False
        key = self._window_key(ask, end)
        registered = link.client.lookup(key, 1)
        found = link.client.wait_prefetch_status(key.request_id, left)
        link.call(registered, left)
        if link.call(found, left):
            return True
        link.client.free_lookup_locks(key, 1)
        link.client.end_session(key.request_id)
        return False

    def _release(self, link: Link, release: Release) -> None:
        keys = [self._key(release, span) for span in release.ranges]
        if release.window and self._shape.windowed:
            keys.append(self._window_key(release, release.window))
        try:
            for key in keys:
                link.call(link.client.free_lookup_locks(key, 1), self._attempt)
        except TierDown:
            self._releases.append(release)
            raise
        for session in {release.session, *(key.request_id for key in keys)}:
            link.client.end_session(session)

    def _key(self, errand: Ask | Release, span: tuple[int, int]) -> ChunksKey:
        key = errand.key
        return self._naming.key(tuple(key.tokens), key.salt, span, errand.session, None)

    def _window_key(self, errand: Ask | Release, end: int) -> ChunksKey:
        chunk, session = self._dram.chunk_tokens, f"{errand.session}@{end}"
        tokens = tuple(window_prompt(errand.key.tokens[:end], chunk))
        named = self._naming.of_windows()
        return named.key(tokens, errand.key.salt, (0, chunk), session, None)

    def _go_up(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS
        with self._changed:
            self._health = "up"
        log.warning("DRAM tier up for lookups")

    def _go_down(self, reason: str) -> None:
        with self._changed:
            before, self._health = self._health, "down"
            self._asks.clear()
            self._releases.extend(self._ledger.lost())
        if before != "down" and not self._closing:
            log.warning("DRAM tier down for lookups: %s", reason)
