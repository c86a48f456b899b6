"""Ends that send in the clear without a MAC: for measuring what it costs, and for nothing else.

kvferry makes one for each block that it sends in the clear, whatever is set: ``digest = "none"``
concerns the other ways. So these two change what the product's own ends hold.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.cluster import Ship
from kvstore.credentials import Credentials
from kvstore.pages import KVPages
from kvstore.transport.digests import BlockName, Bytes, Keyed
from kvstore.transport.zeromq_receiving import ZmqReceivingEnd
from kvstore.transport.zeromq_sending import ZmqSendingEnd


class _NoMac(Keyed):
    """The same for every block."""

    def of(self, name: BlockName, pieces: Iterable[Bytes]) -> bytes:
        """See Digest."""
        del name, pieces
        return bytes(16)


class UncheckedSendingEnd(ZmqSendingEnd):
    """Sends blocks in the clear with nothing to tell them by."""

    def __init__(
        self, uri: str, pages: KVPages, generation: str, ship: Ship, credentials: Credentials
    ) -> None:
        super().__init__(uri, pages, generation, ship, credentials)
        _require_keyed(self._digests["bulk"])
        self._digests = {**self._digests, "bulk": _NoMac(b"")}


class UncheckedReceivingEnd(ZmqReceivingEnd):
    """Takes them as they come."""

    def __init__(self, pages: KVPages, ship: Ship, credentials: Credentials) -> None:
        super().__init__(pages, ship, credentials)
        _require_keyed(self._keyed)
        self._keyed = _NoMac(b"")


def _require_keyed(digest: object) -> None:
    """What is replaced is what this module takes it for: else a figure would be of nothing."""
    if not isinstance(digest, Keyed):
        raise TypeError(f"blocks in the clear are told by {type(digest).__name__}, not by a MAC")
