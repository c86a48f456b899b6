"""A fleet's hit ratio over time, and how soon it is back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.routing.tally import Counts

LEAST_PROMPTS = 50
"""Of fewer a ratio says little: a few that come first may all be found, or none."""


@dataclass(frozen=True)
class Window:
    """Between two samples of a tally."""

    first: Counts
    last: Counts

    @property
    def prompts(self) -> int:
        """That were computed meanwhile."""
        return self.last.prompts - self.first.prompts

    @property
    def ratio(self) -> float:
        """The part of their tokens that was held where they were computed."""
        return (self.last.cached - self.first.cached) / self._tokens

    @property
    def blind(self) -> float:
        """The part that would have been with workers chosen at random."""
        return (self.last.blind - self.first.blind) / self._tokens

    @property
    def _tokens(self) -> int:
        return max(1, self.last.tokens - self.first.tokens)


def window(samples: Sequence[Counts], start: float, end: float) -> Window | None:
    """The longest within these moments; None where there are not two samples."""
    inside = [one for one in samples if start <= one.at <= end]
    return Window(inside[0], inside[-1]) if len(inside) > 1 else None


def windows(samples: Sequence[Counts], since: float, seconds: float) -> list[Window]:
    """All that begin after ``since``, overlapping, each of ``seconds`` or little more and of
    ``LEAST_PROMPTS`` at least.
    """
    after = [one for one in samples if one.at >= since]
    found = []
    for end, last in enumerate(after):
        fit = (
            Window(first, last)
            for first in reversed(after[:end])
            if last.at - first.at >= seconds and last.prompts - first.prompts >= LEAST_PROMPTS
        )
        if (latest := next(fit, None)) is not None:
            found.append(latest)
    return found


def seconds_until(
    samples: Sequence[Counts], since: float, seconds: float, ratio: float
) -> float | None:
    """From ``since`` to the end of the first window with that ``ratio``; None: none has it."""
    ends = (one.last.at for one in windows(samples, since, seconds) if one.ratio >= ratio)
    end = next(ends, None)
    return None if end is None else end - since
