"""What holds for tenants as far as anybody has said it: epochs that only rise, and shares. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from kvstore.cluster import MOST_TENANTS
from kvstore.errors import WireError
from kvstore.messages import Standing

MAX_TAGS = MOST_TENANTS
"""Tenants of whom more is known than what holds for anybody."""

TENANCY_PATH = "/kvferry/tenancy"
"""Where a worker's gate is told."""

PART = 64
"""Standings in one message."""


class Standings:
    """The highest epoch ever told of each tenant, and the shares told last.

    Nobody's epoch is ever forgotten: where there are as many tenants as may be, another one is
    refused, so a flush is in force or it is known not to be.
    """

    def __init__(self) -> None:
        self._known: dict[str, Standing] = {}

    def __iter__(self) -> Iterator[Standing]:
        return iter(self._known.values())

    def take(self, told: Iterable[Standing]) -> list[Standing]:
        """Takes in what is told; what is now otherwise than before.

        Raises WireError, having taken in what came before it, where one is too many.
        """
        changed = []
        for standing in told:
            before = self.of(standing.tag)
            now = msgspec.structs.replace(standing, epoch=max(before.epoch, standing.epoch))
            if now == before:
                continue
            if standing.tag not in self._known and len(self._known) >= MAX_TAGS:
                raise WireError("more tenants than may be remembered")
            self._known[standing.tag] = now
            changed.append(now)
        return changed

    def of(self, tag: str) -> Standing:
        """What holds for the tenant of that tag."""
        return self._known.get(tag) or Standing(tag, 0)

    def parts(self) -> Iterator[tuple[Standing, ...]]:
        """All of them, as many at a time as a message takes."""
        return parts(self)


def parts(standings: Iterable[Standing]) -> Iterator[tuple[Standing, ...]]:
    """``standings``, as many at a time as a message takes."""
    known = tuple(standings)
    return (known[at : at + PART] for at in range(0, len(known), PART))
