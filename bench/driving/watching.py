"""Stops a run that its server cannot keep up with, and remembers that it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.driving.fleet import Watch
from bench.measures.saturation import saturated
from bench.records import Record

LOOK_SECONDS = 2.0


class SaturationStop:
    """Between a fleet and whoever watches it. ``stop`` is called once, when it is certain."""

    def __init__(self, watch: Watch, stop: Callable[[], None]) -> None:
        self._watch = watch
        self._stop = stop
        self._in_flight: list[tuple[float, float]] = []
        self._ttft: list[tuple[float, float]] = []
        self._looked = 0.0
        self.saturated = False

    def watch(self, records: Sequence[Record], sent: int, in_flight: int) -> None:
        """See Watch. The clock is the newest record's, so nothing is asked of the machine's."""
        self._watch(records, sent, in_flight)
        good = [record for record in records if record.ok]
        if not good or self.saturated:
            return
        now = max(record.finished for record in good)
        self._ttft += sorted((record.intended, record.ttft) for record in good)
        self._in_flight.append((now, float(in_flight)))
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if saturated(self._in_flight, sorted(self._ttft)):
                self.saturated = True
                self._stop()
