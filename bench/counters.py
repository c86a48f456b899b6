"""What an engine counts about its caches, read from its Prometheus page."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')

_BLOCKS = "vllm:cache_config_info"


@dataclass(frozen=True)
class CacheCounters:
    """Tokens asked of and found in the engine's own prefix cache and, by its connector, elsewhere.

    ``usage`` is the fraction of the engine's blocks in use, ``blocks`` their number and
    ``block_size`` their tokens (0: the engine does not say).
    """

    local_queries: int
    local_hits: int
    external_queries: int
    external_hits: int
    usage: float
    blocks: int
    block_size: int

    def since(self, earlier: CacheCounters) -> CacheCounters:
        """What was counted after ``earlier``; levels as they are now."""
        return CacheCounters(
            self.local_queries - earlier.local_queries,
            self.local_hits - earlier.local_hits,
            self.external_queries - earlier.external_queries,
            self.external_hits - earlier.external_hits,
            self.usage,
            self.blocks,
            self.block_size,
        )


def parse(page: str) -> CacheCounters:
    """The counters on a vLLM engine's ``/metrics`` page. Raises ValueError if it is none."""
    values: dict[str, float] = {}
    shape: dict[str, str] = {}
    for line in page.splitlines():
        if match := _LINE.match(line):
            name, labels, value = match.groups()
            if name == _BLOCKS:
                shape = dict(_LABEL.findall(labels or ""))
            elif name.startswith("vllm:"):
                values[name] = values.get(name, 0.0) + float(value)
    if "vllm:prefix_cache_queries_total" not in values:
        raise ValueError("not the metrics page of a vLLM engine")

    def count(name: str) -> int:
        return int(values.get(f"vllm:{name}_total", 0))

    return CacheCounters(
        local_queries=count("prefix_cache_queries"),
        local_hits=count("prefix_cache_hits"),
        external_queries=count("external_prefix_cache_queries"),
        external_hits=count("external_prefix_cache_hits"),
        usage=values.get("vllm:kv_cache_usage_perc", 0.0),
        blocks=_integer(shape.get("num_gpu_blocks", "")),
        block_size=_integer(shape.get("block_size", "")),
    )


def _integer(text: str) -> int:
    return int(text) if text.isdecimal() else 0
