"""Finished requests whose blocks a transfer still reads, and those of them that a flush ends. Pure.

Left to itself a transfer that no decode worker asks for holds its blocks until its lease is over,
which is longer than a flushed tenant's memory may wait to be overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.salts import owner


class Leaving:
    """Requests that have finished and are not yet sent, by id."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[str, bytes]] = {}

    def add(self, request: str, salt: str, transfer: bytes) -> None:
        """``request`` has finished; its blocks wait for ``transfer``."""
        self._waiting[request] = salt, transfer

    def sent(self, request: str) -> None:
        """Its blocks are no longer read."""
        self._waiting.pop(request, None)

    def flush(self, flushing: Mapping[str, int]) -> list[tuple[str, bytes]]:
        """Requests and transfers of an epoch below their tenant's in ``flushing``; each once."""
        if not flushing:  # as in nearly every step
            return []
        ended = [
            (request, transfer)
            for request, (salt, transfer) in self._waiting.items()
            if _is_flushed(salt, flushing)
        ]
        for request, _ in ended:
            del self._waiting[request]
        return ended


def _is_flushed(salt: str, flushing: Mapping[str, int]) -> bool:
    whose = owner(salt)
    return whose is not None and whose.epoch < flushing.get(whose.tag, 0)
