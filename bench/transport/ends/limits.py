"""What one process can copy: the most that any transport through memory could reach.

Both run in the receiving process, from pages that hold what the sender's hold.
"""

from __future__ import annotations

import time

import numpy as np

from bench.transport.case import Case
from bench.transport.content import Pages
from bench.transport.ends.end import Bystander
from bench.transport.frames import Moved


class MemcpyEnd(Bystander):
    """One copy of everything."""

    def __init__(self, source: Pages, target: Pages) -> None:
        self._source = source
        self._target = target

    def move(self, case: Case) -> Moved:
        """See End."""
        source, target = self._source[: case.blocks], self._target[: case.blocks]
        began = time.monotonic()
        np.copyto(target, source)
        return Moved(began, time.monotonic())


class GatherEnd(Bystander):
    """Random pages, taken one after the other."""

    def __init__(self, source: Pages, target: Pages) -> None:
        self._source = source
        self._target = target

    def move(self, case: Case) -> Moved:
        """See End."""
        chosen = np.array(case.pages("sender", len(self._source)))
        target = self._target[: case.blocks]
        began = time.monotonic()
        # Only so does numpy write into the target at once; by default it fills a buffer first.
        np.take(self._source, chosen, axis=0, out=target, mode="clip")
        return Moved(began, time.monotonic())
