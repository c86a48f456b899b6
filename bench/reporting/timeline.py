"""How a run went over time: TTFT, requests in flight, rates of requests and of tokens."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.records import Record
from bench.reporting.document import HeatStrip, Lines, Series

COLUMNS = 40
ROWS = 16
_PER_COLUMN = 5
_FEWEST_COLUMNS = 12
_GRID = 160
_WIDE = 20.0
"""Values further apart than this factor are told on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Span:
    """``edges``: seconds, rising, of equal distance, from the first intended send to the end."""

    edges: Sequence[float]

    @property
    def width(self) -> float:
        """Seconds of one bin."""
        return self.edges[1] - self.edges[0]

    @property
    def middles(self) -> list[float]:
        """Seconds, one for each bin."""
        return [edge + self.width / 2 for edge in self.edges[:-1]]

    def curve(self, name: str, counts: Sequence[float]) -> Series:
        """What was counted in each bin as a rate, per second, drawn from end to end."""
        rates = [count / self.width for count in counts]
        x = [self.edges[0], *self.middles, self.edges[-1]]
        return Series(name, x, [rates[0], *rates, rates[-1]])

    def counts(self, times: Sequence[float]) -> list[int]:
        """How many of the times fall into each bin."""
        ordered = sorted(times)
        places = [bisect_left(ordered, edge) for edge in self.edges]
        places[-1] = bisect_right(ordered, self.edges[-1])
        return [after - before for before, after in pairwise(places)]


def timeline(records: Sequence[Record]) -> list[HeatStrip | Lines]:
    """Four plots over the seconds since the first of these requests; none without records."""
    if not records:
        return []
    began = min(record.intended for record in records)
    span = _span(max(record.finished for record in records) - began, len(records))
    return [
        _ttft_strip(records, began, span),
        _in_flight(records, began, span),
        _request_rates(records, began, span),
        _token_rate(records, began, span),
    ]


def spread_widely(values: Sequence[float]) -> bool:
    """Whether a logarithmic scale tells more of these values."""
    return bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)


def _span(seconds: float, count: int) -> Span:
    bins = min(COLUMNS, max(_FEWEST_COLUMNS, count // _PER_COLUMN))
    width = max(seconds, 1e-3) / bins
    return Span([i * width for i in range(bins + 1)])


def _ttft_strip(records: Sequence[Record], began: float, span: Span) -> HeatStrip:
    points = [(record.intended - began, record.ttft * 1000) for record in records if record.ok]
    latencies = [ttft for _, ttft in points]
    wide = spread_widely(latencies)
    edges = _latency_edges(latencies, wide)
    counts = [[0] * ROWS for _ in span.edges[:-1]]
    for at, ttft in points:
        column = min(int(at / span.width), len(counts) - 1)
        row = min(max(bisect_right(edges, ttft) - 1, 0), ROWS - 1)
        counts[column][row] += 1
    return HeatStrip(
        "TTFT over time", span.edges, edges, counts, "intended send, s", "TTFT, ms", wide,
        note="The stronger the colour, the more requests.",
    )  # fmt: skip


def _latency_edges(latencies: Sequence[float], wide: bool) -> list[float]:
    low, high = (min(latencies), max(latencies)) if latencies else (0.0, 1.0)
    if wide:
        factor = (high / low) ** (1 / ROWS)
        return [low * factor**i for i in range(ROWS)] + [high]
    low = min(low, 0.0)
    high = high if high > low else low + 1.0
    return [low + (high - low) * i / ROWS for i in range(ROWS)] + [high]


def _in_flight(records: Sequence[Record], began: float, span: Span) -> Lines:
    sent = sorted(record.sent - began for record in records)
    finished = sorted(record.finished - began for record in records)
    times = [span.edges[-1] * i / _GRID for i in range(_GRID + 1)]
    level = [bisect_right(sent, at) - bisect_right(finished, at) for at in times]
    return Lines(
        "Requests in flight", [Series("in flight", times, level)], "time, s", "requests",
        note="Sent and not yet answered in full.",
    )  # fmt: skip


def _request_rates(records: Sequence[Record], began: float, span: Span) -> Lines:
    planned = span.counts([record.intended - began for record in records])
    answered = span.counts([record.finished - began for record in records if record.ok])
    failed = span.counts([record.finished - began for record in records if not record.ok])
    series = [span.curve("planned", planned), span.curve("answered", answered)]
    if any(failed):
        series.append(span.curve("failed", failed))
    return Lines("Rate of requests", series, "time, s", "requests per second")


def _token_rate(records: Sequence[Record], began: float, span: Span) -> Lines:
    tokens = [0.0] * (len(span.edges) - 1)
    for record in records:
        if not record.tokens:
            continue
        # An event may carry several tokens; only their sum is known.
        each = (record.output_tokens or len(record.tokens)) / len(record.tokens)
        for at in record.tokens:
            tokens[min(max(math.floor((at - began) / span.width), 0), len(tokens) - 1)] += each
    return Lines("Output tokens", [span.curve("output", tokens)], "time, s", "tokens per second")
