"""Gauges of what workers hold of tenants, by name, as they told last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from kvstore.tenant_feed import TenantFeed

UNKNOWN = "unknown"
"""Tenants that are in no file any more, all together."""

_LABELS = ("tenant", "worker", "tier")


class TenantMemory(Collector):
    """``named``: the name behind a tag, None where it is nobody's."""

    def __init__(self, feed: TenantFeed, named: Callable[[str], str | None]) -> None:
        self._feed = feed
        self._named = named

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As prometheus_client asks for it."""
        kept = GaugeMetricFamily(
            "kvferry_tenant_kept_bytes",
            "KV that a tenant's requests can find again.",
            labels=_LABELS,
        )
        used = GaugeMetricFamily(
            "kvferry_tenant_used_bytes", "KV of a tenant's requests under way.", labels=_LABELS
        )
        capacity = GaugeMetricFamily(
            "kvferry_tier_bytes", "KV that a worker's tier can hold.", labels=_LABELS[1:]
        )
        for (worker, tier), memory in self._feed.memory.items():
            capacity.add_metric((worker, tier), memory.capacity)
            sums: dict[str, tuple[int, int]] = {}
            for tag, held in memory.holdings.items():
                name = self._named(tag) or UNKNOWN
                before = sums.get(name, (0, 0))
                sums[name] = before[0] + held.kept, before[1] + held.used
            for name, (bytes_kept, bytes_used) in sums.items():
                kept.add_metric((name, worker, tier), bytes_kept)
                used.add_metric((name, worker, tier), bytes_used)
        yield from (kept, used, capacity)
