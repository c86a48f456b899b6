"""Time, as everything here is given it: seconds on one monotonic clock of the host.

On Linux ``time.monotonic`` is the same clock in every process of a host, so an absolute deadline
may be passed between them; across hosts only what is left of it may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
