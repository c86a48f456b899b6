"""The highest rate that keeps a limit: doubled until it fails, then halved in between."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RateSearch:
    """``first``: the rate tried first; ``precision``: how far apart, as a fraction, the last rate
    that kept the limit and the first that did not may be; ``most``: tries altogether; ``least``:
    the lowest rate worth trying."""

    first: float
    precision: float = 0.05
    most: int = 16
    least: float = 0.0
    kept: float = 0.0
    broken: float = field(default=float("inf"))
    tries: int = 0

    def rate(self) -> float | None:
        """What to try next; None when the search has ended."""
        if self.tries >= self.most:
            return None
        if self.tries == 0:
            return self.first
        if self.broken == float("inf"):
            return self.kept * 2
        if self.kept == 0.0:
            return self.broken / 2 if self.broken / 2 >= self.least else None
        if self.broken / self.kept <= 1 + self.precision:
            return None
        return float((self.kept * self.broken) ** 0.5)

    def note(self, rate: float, kept: bool) -> None:
        """How ``rate`` went."""
        self.tries += 1
        if kept:
            self.kept = max(self.kept, rate)
        else:
            self.broken = min(self.broken, rate)
