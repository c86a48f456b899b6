"""A DRAM tier in this process, as small as the contract allows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from kvstore.pages import KVPages, open_pages
from kvstore.tier import Health, Job, OpQueue, TierKey, TierOp, TierResult, is_kept
from kvstore.tier_shape import Part, TierShape

Name = tuple[Part, str, tuple[int, ...]]


@dataclass
class MemoryStore:
    """What both sides share: chunks and how often each is locked."""

    shape: TierShape
    chunks: dict[Name, np.ndarray] = field(default_factory=dict)
    locked: Counter[Name] = field(default_factory=Counter)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def names(self, tokens: Sequence[int], salt: str, start: int, end: int) -> list[Name]:
        size = self.shape.chunk_tokens
        return [("chunks", salt, tuple(tokens[: at + size])) for at in range(start, end, size)]

    def names_of(self, op: TierOp) -> list[Name]:
        if op.part == "window":
            return [("window", op.salt, tuple(op.tokens[: op.end]))]
        return self.names(op.tokens, op.salt, op.start, op.end)

    def unlock(self, names: list[Name]) -> None:
        self.locked.subtract(names)
        assert min(self.locked.values(), default=0) >= 0, "unlocked more often than locked"


class MemoryLookup:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._held: dict[str, list[Name]] = {}
        self._windows: dict[str, Name] = {}
        self._seen: set[str] = set()

    @property
    def chunk_tokens(self) -> int:
        return self._store.shape.chunk_tokens

    def start(self, key: TierKey) -> None:
        if key.request in self._seen or not is_kept(key.salt):
            return
        self._seen.add(key.request)
        whole = len(key.tokens) // self.chunk_tokens * self.chunk_tokens
        held = []
        with self._store.guard:
            for name in self._store.names(key.tokens, key.salt, 0, whole):
                if name not in self._store.chunks:
                    break
                held.append(name)
            while held and self._store.shape.windowed:
                window: Name = ("window", *held[-1][1:])
                if window in self._store.chunks:
                    self._windows[key.request] = window
                    self._store.locked.update([window])
                    break
                held.pop()
            self._store.locked.update(held)
        self._held[key.request] = held

    def poll(self, request: str) -> int | None:
        return len(self._held.get(request, ())) * self.chunk_tokens

    def keep(self, request: str, start: int, end: int) -> None:
        held = self._held.pop(request, [])
        kept = held[start // self.chunk_tokens : -(-end // self.chunk_tokens)]
        if window := self._windows.pop(request, None):
            held.append(window)
            kept += [window] if kept else []
        with self._store.guard:
            self._store.unlock([name for name in held if name not in kept])

    def end(self, request: str) -> None:
        self.keep(request, 0, 0)
        self._seen.discard(request)

    def close(self) -> None:
        for request in list(self._held):
            self.end(request)


class MemoryCopy:
    """Runs each op when its result is asked for, so that tests can withdraw before that."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._queue = OpQueue(limit=256)
        self._pages: KVPages | None = None

    def attach(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._pages = open_pages(list(kv_caches.values()))

    def store(self, op: TierOp) -> None:
        if is_kept(op.salt):
            self._queue.submit("store", op, deadline=0.0)
        else:
            self._queue.refuse("store", op, "nothing is kept under this salt")

    def load(self, op: TierOp) -> None:
        self._queue.submit("load", op, deadline=0.0)

    def withdraw(self, request: str) -> None:
        for job in self._queue.withdraw(request):
            if job.kind == "load":
                self._unlock(job)

    def drain(self) -> list[TierResult]:
        while job := self._queue.take():
            self._queue.begin_copy()
            done = self._stored(job.op) if job.kind == "store" else self._loaded(job)
            self._queue.end_copy()
            blocks = len(job.op.block_ids) - job.op.skip_blocks
            self._queue.finish(ok=done, blocks=blocks if done else 0, reason=None if done else "?")
        return self._queue.drain()

    def status(self) -> Health:
        return "up"

    def close(self) -> None:
        self._queue.fail_queued("closed")

    def _unlock(self, job: Job) -> None:
        with self._store.guard:
            self._store.unlock(self._store.names_of(job.op))

    def _blocks(self, op: TierOp, at: int) -> list[int]:
        count = len(op.block_ids) if op.part == "window" else self._store.shape.chunk_blocks
        return op.block_ids[at * count : (at + 1) * count]

    def _stored(self, op: TierOp) -> bool:
        assert self._pages is not None
        size = self._pages.block_bytes
        for at, name in enumerate(self._store.names_of(op)):
            chunk = []
            for block in self._blocks(op, at):
                part = np.empty(size, dtype=np.uint8)
                self._pages.gather([block], part)
                chunk.append(part)
            with self._store.guard:
                self._store.chunks.setdefault(name, np.stack(chunk))
        return True

    def _loaded(self, job: Job) -> bool:
        assert self._pages is not None
        op, number = job.op, 0
        for at, name in enumerate(self._store.names_of(op)):
            for block, part in zip(self._blocks(op, at), self._store.chunks[name], strict=True):
                if number >= op.skip_blocks:
                    self._pages.scatter([block], part)
                number += 1
        self._unlock(job)
        return True
