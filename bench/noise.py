"""Whether the machine was ours: computing done meanwhile by anything but the system and the client.

A figure taken while something else computes says little on a machine with few cores; so every
measurement says how many cores went elsewhere, the hypervisor's included.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import psutil

from bench.processes import Child

NOISY_CORES = 0.15
"""More than this on average, and a measurement is complained about."""


class CpuWatch:
    """From its making to :meth:`others`. A process of the system that ends in between is counted
    as somebody else's, so the figure errs on the side of complaint."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._began = time.monotonic()
        self._busy = _busy()
        self._own = self._computed()

    def others(self) -> float:
        """Cores, on average, that computed for others since this was made."""
        return foreign(self.seconds, _busy() - self._busy, self._own, self._computed())

    @property
    def seconds(self) -> float:
        """Since this was made."""
        return time.monotonic() - self._began

    def _computed(self) -> dict[int, float]:
        """CPU seconds of every process of the system and of this one."""
        members = [member for child in self._children for member in child.family()]
        spent: dict[int, float] = {}
        for member in (*members, psutil.Process(os.getpid())):
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            spent[member.pid] = times.user + times.system
        return spent


def foreign(
    seconds: float, busy: float, before: Mapping[int, float], after: Mapping[int, float]
) -> float:
    """Cores' worth of ``busy`` CPU seconds that the processes ``after`` do not account for.

    ``before`` and ``after``: CPU seconds by pid; a process that is new began at zero.
    """
    own = sum(spent - before.get(pid, 0.0) for pid, spent in after.items())
    return max(0.0, (busy - own) / max(seconds, 1e-3))


def _busy() -> float:
    """Seconds that all cores together did not idle."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - _guests(times))


def _guests(times: object) -> float:
    # Linux counts guests' time within user and nice as well.
    return float(getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0))
