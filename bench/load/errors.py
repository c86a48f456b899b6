"""What is wrong with a load that was asked for."""

from __future__ import annotations


class BadLoad(Exception):
    """A workload, a length or a trace that cannot be; the message is one line."""
