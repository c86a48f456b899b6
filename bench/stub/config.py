"""How the stub behaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class StubConfig:
    """Delays and faults. Raises ValueError for what cannot be.

    ``prefill_us`` is for every prompt token that no cached block holds, on top of ``ttft_ms``.
    ``slots``: how many requests are served at once, the others wait in order of arrival; 0: all.
    ``cache_blocks``: blocks of ``block_words`` words that are kept, those least recently used go
    first; 0: no cache. ``jitter``: sigma of a lognormal factor on each delay, drawn from ``seed``
    and the request's content, so that a request is as slow in one run as in the other.
    ``error_every`` and ``drop_every``: each n-th completion is refused, or cut after half of its
    output; 0: none. ``output_tokens``: for a request that does not say.
    """

    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    prefill_us: float = 0.0
    slots: int = 0
    cache_blocks: int = 0
    block_words: int = 16
    jitter: float = 0.0
    seed: int = 0
    error_every: int = 0
    drop_every: int = 0
    output_tokens: int = 16
    model: str = "stub"

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, str) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{one.name} must be a number of at least 0, not {value}")
        if self.block_words < 1 or self.output_tokens < 1:
            raise ValueError("block_words and output_tokens must be at least 1")
