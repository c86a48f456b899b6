"""How many samples an equivalence test needs, and what as many as there are can show. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist

MARGIN = 0.05
ALPHA = 0.05
POWER = 0.9
"""Of the full form: the chance to call equal what is equal."""

_NORMAL = NormalDist()


def needed(power: float, alpha: float = ALPHA) -> int:
    """Samples of each kind for two one-sided tests of an AUC within 0.5 ± ``MARGIN``.

    If it truly is 0.5 they then find it within with that ``power``.
    """
    spread = _NORMAL.inv_cdf(1 - alpha) + _NORMAL.inv_cdf(0.5 + power / 2)
    return math.ceil(spread**2 / (6 * MARGIN**2))


def power_of(samples: int) -> float:
    """The chance to find an AUC that is truly 0.5 within the margin, with so many of each kind."""
    if samples < 1:
        return 0.0
    spread = math.sqrt((2 * samples + 1) / (12 * samples**2))
    reach = MARGIN / spread - _NORMAL.inv_cdf(1 - ALPHA)
    return max(0.0, 2 * _NORMAL.cdf(reach) - 1)
