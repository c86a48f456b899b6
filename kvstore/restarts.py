"""When to start something again that has ended, and when to give up. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

STEADY_SECONDS = 60.0
"""Whatever ran for so long has shown that it can run: its earlier ends are forgotten."""


@dataclass
class Restarts:
    """Ends in a row of one child.

    ``limit`` ends, none of them after a steady run, are one too many. The pause doubles from
    ``first_pause`` up to ``longest_pause``, seconds. Some of vLLM's starts fail by chance, so the
    first pause is short.
    """

    limit: int = 5
    first_pause: float = 0.5
    longest_pause: float = 15.0
    in_a_row: int = 0

    def after(self, ran_seconds: float) -> float | None:
        """The pause before the next start; None to give up."""
        self.in_a_row = 1 if ran_seconds >= STEADY_SECONDS else self.in_a_row + 1
        if self.in_a_row >= self.limit:
            return None
        return float(min(self.longest_pause, self.first_pause * 2 ** (self.in_a_row - 1)))
