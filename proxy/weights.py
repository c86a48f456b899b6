"""What steering prompts depends on beside what is measured: numbers that were chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """How prompts are weighed against each other.

    ``lead`` (seconds) and ``most``: see :class:`proxy.placement.Terms`; ``patience`` too, but here
    it is in prompts of usual length, as is ``lately``. A second of computing is worth one of
    waiting where workers are idle; where they are busy for a part r of the time, ``crowded`` times
    r / (1 - r) more: that is how many others it delays. ``uneven``: seconds that speak against a
    worker for each that it computed more than the least busy one ``lately``. ``size``: seconds by
    which a prompt stands behind later ones for each second that it takes, which count up to
    ``size_most`` times the usual. ``fresh``: prompts at the head of the queue for which the
    workers' holdings are looked up again every ``stale`` seconds; ``window``: prompts that are
    looked at. ``lingers``: seconds after its end for which a prompt counts as held though the feed
    does not tell of it yet.

    Chosen on Mooncake's conversation trace (``kvferry bench simulate``).
    """

    crowded: float = 2.5
    lead: float = 0.02
    most: int = 8
    patience: float = 10.0
    uneven: float = 0.02
    lately: float = 750.0
    size: float = 3.0
    size_most: float = 1.25
    fresh: int = 64
    window: int = 1024
    stale: float = 0.25
    lingers: float = 1.0
