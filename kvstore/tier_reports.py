"""Which relay is still to be told whose memory in the DRAM tier has been overwritten. Pure.

Every flush is told once to each relay that is there when it is done, and once to one that comes
later and says what holds. There are at most as many of them as there are tenants with standings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from kvstore.messages import Standing, Wiped

AT_ONCE = 64
"""Reports to one relay in a turn: more would fill its queue."""


@dataclass
class _Relay:
    owed: dict[str, Wiped] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)


class WipeReports:
    """The last flush of each tenant, and who knows of it. Relays are known by their connections."""

    def __init__(self) -> None:
        self._done: dict[str, Wiped] = {}
        self._relays: dict[bytes, _Relay] = {}

    def done(self, wiped: Wiped, relays: Iterable[bytes]) -> None:
        """A flush is done; these relays are there."""
        self._done[wiped.tag] = wiped
        for peer in {*relays, *self._relays}:
            self._relays.setdefault(peer, _Relay()).owed[wiped.tag] = wiped

    def asked(self, peer: bytes, standings: Iterable[Standing]) -> None:
        """A relay says what holds, and wants to know where that is so of the memory as well."""
        relay = self._relays.setdefault(peer, _Relay())
        for standing in standings:
            wiped = self._done.get(standing.tag)
            if wiped is None or wiped.epoch < standing.epoch:
                continue  # it is not done yet
            if relay.told.get(standing.tag, -1) < wiped.epoch:
                relay.owed[standing.tag] = wiped

    def take(self) -> Iterator[tuple[bytes, Wiped]]:
        """What is to be told now, and to whom; it counts as told."""
        for peer, relay in list(self._relays.items()):
            for tag in list(islice(relay.owed, AT_ONCE)):
                wiped = relay.owed.pop(tag)
                relay.told[tag] = wiped.epoch
                yield peer, wiped

    def missed(self, peer: bytes, wiped: Wiped) -> None:
        """This could not be told to that relay, and is owed to it again."""
        relay = self._relays.setdefault(peer, _Relay())
        relay.told.pop(wiped.tag, None)
        relay.owed.setdefault(wiped.tag, wiped)

    def keep(self, relays: Collection[bytes]) -> None:
        """Forgets all relays but these: one that comes again is told again."""
        self._relays = {peer: known for peer, known in self._relays.items() if peer in relays}
