"""What is wrong with a load that was asked for."""

from __future__ import annotations

from bench.errors import BenchError


class BadLoad(BenchError):
    """A workload, a length or a trace that cannot be; the message is one line."""
