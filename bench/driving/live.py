"""What a run looks like while it goes on: one line that renews itself, or plain lines in a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TextIO

from bench.records import Record
from bench.statistics import percentile

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 10.0
_RECENT = 200


class Live:
    """Fed by ``Fleet.run``. ``total`` requests are to come; ``rate``: per second, 0 if none is set;
    ``seconds``: how long sending takes by schedule, 0 if nobody knows."""

    def __init__(self, out: TextIO, total: int, rate: float = 0.0, seconds: float = 0.0) -> None:
        self._out = out
        self._total = total
        self._rate = rate
        self._seconds = seconds
        self._terminal = out.isatty()
        self._began = time.monotonic()
        self._next = self._began
        self._done = self._errors = 0
        self._prompt = self._cached = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def watch(self, records: Sequence[Record], sent: int, in_flight: int) -> None:
        """New records; shows where things stand if it is time to."""
        for record in records:
            self._done += 1
            self._prompt += record.prompt_tokens or 0
            self._cached += record.cached_tokens or 0
            if record.ok:
                self._recent.append(record.ttft)
            else:
                self._errors += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (TERMINAL_SECONDS if self._terminal else LOG_SECONDS)
            self._show(self.line(sent, in_flight, now - self._began))

    def end(self) -> None:
        """Leaves the line behind."""
        if self._terminal:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def line(self, sent: int, in_flight: int, elapsed: float) -> str:
        """Rate, requests under way, hit ratio, TTFT, errors and what is left."""
        rate = f"{sent / max(elapsed, 1e-3):.1f}" + (f"/{self._rate:.1f}" if self._rate else "")
        parts = [f"{self._done}/{self._total}", f"{rate} req/s", f"{in_flight} in flight"]
        if self._cached:
            parts.append(f"hit {self._cached / self._prompt:.0%}")
        if self._recent:
            p50, p99 = (percentile(list(self._recent), rank) * 1000 for rank in (50, 99))
            parts.append(f"TTFT p50 {p50:.0f} p99 {p99:.0f} ms")
        parts.append(f"{self._errors} errors")
        if left := self._left(elapsed):
            parts.append(f"{left:.0f} s left")
        return "  ".join(parts)

    def _left(self, elapsed: float) -> float:
        if self._seconds:
            return max(0.0, self._seconds - elapsed)
        return elapsed * (self._total - self._done) / self._done if self._done else 0.0

    def _show(self, line: str) -> None:
        self._out.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._out.flush()
