"""What keeps an audit from being made."""

from __future__ import annotations

from bench.errors import BenchError


class CannotAudit(BenchError):
    """A setting is wrong or a deployment is not there; the message is one line and says what to
    do."""
