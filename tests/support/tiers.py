"""KV memory shaped as vLLM's on a CPU, and both sides of a tier over it, for tests."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from kvstore.blockhash import block_chain, block_names
from kvstore.cluster import Dram
from kvstore.layout import KVGroup
from kvstore.lmcache_tier import LMCacheLookup
from kvstore.lmcache_tier_link import Naming
from kvstore.lmcache_tier_worker import LMCacheCopy
from kvstore.tier import TierCopy, TierKey, TierLookup, TierOp, TierResult
from kvstore.tier_seal import Scope
from kvstore.tier_shape import TierShape

BLOCK_SIZE = 32
ONE_GROUP = (KVGroup(),)


def kv_memory(
    blocks: int = 64, layers: int = 4, heads: int = 3, head_size: int = 16
) -> dict[str, torch.Tensor]:
    """Random pages: bf16 ``[blocks, heads, BLOCK_SIZE, 2 * head_size]`` per layer."""
    shape = (blocks, heads, BLOCK_SIZE, 2 * head_size)
    size = 2 * torch.Size(shape).numel()
    buffer = torch.randint(-128, 128, (layers * size,), dtype=torch.int8)
    parts = buffer.split(size)
    return {f"layer.{at}": part.view(torch.bfloat16).view(shape) for at, part in enumerate(parts)}


def bits(caches: dict[str, torch.Tensor], blocks: Sequence[int]) -> list[torch.Tensor]:
    """The bytes of these blocks, layer by layer."""
    return [cache.view(torch.int16)[list(blocks)].clone() for cache in caches.values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def named(tokens: Sequence[int], salt: str, start: int, end: int) -> bytes:
    """The joined names of the blocks of ``[start, end)``."""
    names = block_names(block_chain(tokens[:end], BLOCK_SIZE, salt))
    return b"".join(names[start // BLOCK_SIZE :])


def until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether ``true()`` comes to hold in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@dataclass
class Both:
    """Both sides of a tier over one engine's pages."""

    lookup: TierLookup
    copy: TierCopy
    caches: dict[str, torch.Tensor]
    locks: Callable[[], tuple[int, int]]
    shape: TierShape
    results: list[TierResult] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def op(
        self,
        request: str,
        tokens: Sequence[int],
        salt: str,
        blocks: Sequence[int],
        start: int = 0,
        skip: int = 0,
    ) -> TierOp:
        end = start + len(blocks) * BLOCK_SIZE
        number = next(self._numbers)
        names = named(tokens, salt, start, end)
        return TierOp(
            number, request, list(tokens), salt, start, end, list(blocks), skip, names=names
        )

    def window_op(
        self, request: str, tokens: Sequence[int], salt: str, blocks: Sequence[int], end: int
    ) -> TierOp:
        number, start = next(self._numbers), end - self.shape.chunk_tokens
        names = named(tokens, salt, start, end)
        return TierOp(
            number,
            request,
            list(tokens),
            salt,
            start,
            end,
            list(blocks),
            part="window",
            names=names,
        )

    def await_results(self, wanted: int, seconds: float = 10.0) -> list[TierResult]:
        """The next ``wanted`` results."""

        def there() -> bool:
            self.results += self.copy.drain()
            return len(self.results) >= wanted

        until(there, seconds)
        results, self.results = self.results[:wanted], self.results[wanted:]
        assert len(results) == wanted
        return results

    def found(self, request: str, tokens: Sequence[int], salt: str) -> int:
        """Begin a lookup and await its answer."""
        self.lookup.start(TierKey(request, tokens, salt))
        assert until(lambda: self.lookup.poll(request) is not None)
        return self.lookup.poll(request) or 0

    def ready(self, seconds: float = 10.0) -> bool:
        """Both sides are connected."""
        lookup = self.lookup
        if not until(lambda: self.copy.status() == "up", seconds):
            return False
        return until(lambda: getattr(lookup, "_health", "up") == "up", seconds)

    def unlocked(self, seconds: float = 5.0) -> bool:
        return until(lambda: self.locks() == (0, 0), seconds)

    def close(self) -> None:
        self.lookup.close()
        self.copy.close()


def over_lmcache(
    dram: Dram,
    locks: Callable[[], tuple[int, int]],
    *,
    namespace: str = "",
    blocks: int = 64,
    groups: tuple[KVGroup, ...] = ONE_GROUP,
    worker: str = "prefill-0",
    rank: tuple[int, int] = (0, 1),
    heads: int = 3,
) -> Both:
    """``rank``: which one of how many. ``heads`` make blocks large or small."""
    naming = Naming(namespace or f"test-{uuid.uuid4().hex}", ranks=rank[1])
    scope = Scope(naming.namespace, b"layout", *rank)
    shape = TierShape(groups, BLOCK_SIZE, dram.chunk_tokens)
    copy = LMCacheCopy(dram, worker, naming, scope, shape)
    caches = kv_memory(blocks, heads=heads)
    copy.attach(caches)
    return Both(LMCacheLookup(dram, naming, shape), copy, caches, locks, shape)
