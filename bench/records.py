"""What is kept of every request: as it was planned, and as it went.

Times are seconds since the run began, of one monotonic clock. Latencies count from ``intended``,
when the schedule wanted the request sent; service times, from ``sent``, stand beside them. So a
client that falls behind shows its own delay instead of hiding it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Phase = Literal["warm", "prime", "measured"]
"""``warm``: nobody looks at it. ``prime``: fills caches as the workload wants them. Only
``measured`` requests count in any figure."""

STAGES = ("route", "queue", "prefill", "ship", "handover", "first_decode")
"""The parts of a TTFT, in order, that kvferry tells. They add up to the server's own TTFT."""

PATH_HEADER = "x-kvferry-path"
"""The response header in which kvferry tells which way a request took."""

TIERS = ("gpu", "dram")
"""Where cached tokens of a prompt were found, as kvferry tells it."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request. ``error`` is empty for one that ended well; the others have no latency.

    ``tokens``: arrivals of the events that carried output, one each. ``shared_tokens``: how many
    tokens of the prompt an unlimited cache would hold by then. A count the server did not tell is
    None. ``stages``: milliseconds by stage; ``tiers``: cached tokens by tier; empty where the
    server tells none.
    """

    number: int
    phase: Phase = "measured"
    tenant: str = ""
    conversation: int = 0
    turn: int = 0

    planned_prompt_tokens: int
    planned_output_tokens: int
    shared_tokens: int = 0

    intended: float
    sent: float
    first_byte: float | None = None
    tokens: tuple[float, ...] = ()
    finished: float
    status: int = 0
    error: str = ""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    path: str = ""
    stages: Mapping[str, float] = msgspec.field(default_factory=dict)
    tiers: Mapping[str, int] = msgspec.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it was answered in full."""
        return not self.error

    @property
    def lag(self) -> float:
        """Seconds by which the client sent it too late."""
        return self.sent - self.intended

    @property
    def ttft(self) -> float:
        """Seconds from the intended send to the first token."""
        return self.tokens[0] - self.intended

    @property
    def service_ttft(self) -> float:
        """Seconds from the actual send to the first token."""
        return self.tokens[0] - self.sent

    @property
    def e2e(self) -> float:
        """Seconds from the intended send to the last token."""
        return self.tokens[-1] - self.intended

    @property
    def service_e2e(self) -> float:
        """Seconds from the actual send to the last token."""
        return self.tokens[-1] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between one event with output and the next (ITL, one value each)."""
        return [
            later - earlier for earlier, later in zip(self.tokens, self.tokens[1:], strict=False)
        ]

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None where there was one only.

        ``(E2E - TTFT) / (output tokens - 1)``, the definition of vLLM's benchmark.
        """
        count = self.output_tokens or len(self.tokens)
        return (self.tokens[-1] - self.tokens[0]) / (count - 1) if count > 1 else None
