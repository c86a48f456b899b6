"""What a vLLM engine says about its prefix cache, decoded and put in order.

An engine publishes numbered batches of events. They can be missed (a subscriber that joins late
or is too slow), asked for again (the engine keeps the last ones), or be gone for good. This module
does no I/O: it says what to apply, what is missing and when everything known has become doubtful.

Token ids and extra keys, which hold the salt in clear, are skipped while decoding; of a block's
hash only its name (the first ``NAME_BYTES``) is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kvstore.blockhash import NAME_BYTES
from kvstore.errors import WireError

MAX_WAITING = 4096
"""Batches held back behind a gap; one more and the gap counts as lost."""


@dataclass(frozen=True)
class Stored:
    """One more copy of each of these blocks is in the GPU tier."""

    names: tuple[bytes, ...]


@dataclass(frozen=True)
class Removed:
    """One copy less of each of these."""

    names: tuple[bytes, ...]


@dataclass(frozen=True)
class Cleared:
    """Nothing is held any more."""


Event = Stored | Removed | Cleared


class _BlockStored(msgspec.Struct, frozen=True, tag="BlockStored"):
    block_hashes: list[bytes]
    medium: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _BlockRemoved(msgspec.Struct, frozen=True, tag="BlockRemoved"):
    block_hashes: list[bytes]
    medium: str | None = None
    group_idx: int | None = None


class _AllBlocksCleared(msgspec.Struct, frozen=True, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    ts: float
    events: list[_BlockStored | _BlockRemoved | _AllBlocksCleared]


_FULL_ATTENTION = (None, "full_attention", "mla_attention")
_BATCH = msgspec.msgpack.Decoder(_Batch, strict=True)


class EventDecoder:
    """Reads one engine's batches.

    Of a model with several KV groups a block counts as held while a group of full attention holds
    it. A sliding group may have given the block away all the same, or the window before it, and
    the engine then computes what a proxy had thought cached: a lookup is a hint, and one that also
    followed every window would need to know which prompt ends where. A model of sliding windows
    alone counts as cold.

    Only what is stored names its group's kind, so groups are told apart by what was said of them
    first: until then nothing of theirs is counted that could be removed.
    """

    def __init__(self) -> None:
        self._sliding: set[int] = set()

    def decode(self, payload: bytes) -> list[Event]:
        """The events of one batch that concern the GPU tier.

        Raises WireError on anything unknown, such as integer hashes
        (``VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES`` must be 0).
        """
        try:
            batch = _BATCH.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(f"engine event not understood: {error}") from None
        events: list[Event] = []
        for event in batch.events:
            if isinstance(event, _AllBlocksCleared):
                events.append(Cleared())
            elif event.medium in (None, "GPU") and self._counts(event):
                kind = Stored if isinstance(event, _BlockStored) else Removed
                events.append(kind(tuple(_name(block) for block in event.block_hashes)))
        return events

    def _counts(self, event: _BlockStored | _BlockRemoved) -> bool:
        group = event.group_idx or 0
        if isinstance(event, _BlockStored) and event.kv_cache_spec_kind not in _FULL_ATTENTION:
            self._sliding.add(group)
        return group not in self._sliding


def _name(block: bytes) -> bytes:
    if len(block) < NAME_BYTES:
        raise WireError(f"engine event with a block hash of {len(block)} bytes")
    return block[:NAME_BYTES]


@dataclass(frozen=True)
class InOrder:
    """Batches to apply now. ``lost``: forget everything known first, some were missed."""

    batches: tuple[bytes, ...] = ()
    lost: bool = False


class EventOrder:
    """Puts one engine's batches in order; batches count from zero with every engine start.

    ``expected`` is the number of the next batch to apply. Batches after it wait until a replay
    has filled the gap or has turned out not to.
    """

    def __init__(self) -> None:
        self.expected = 0
        self._waiting: dict[int, bytes] = {}
        self._last_live = -1

    @property
    def missing(self) -> bool:
        """Whether batches wait for ``expected``."""
        return bool(self._waiting)

    def live(self, number: int, batch: bytes) -> InOrder:
        """A batch as it was published. Numbers only grow unless the engine was started anew."""
        anew = number <= self._last_live
        self._last_live = number
        if anew:
            self.expected = 0
            self._waiting.clear()
        ready = self._add(number, batch)
        return InOrder(ready.batches, ready.lost or anew)

    def replayed(self, number: int, batch: bytes) -> InOrder:
        """A batch the engine sent again."""
        return self._add(number, batch)

    def replay_over(self) -> InOrder:
        """No more will be replayed: what is still missing is lost."""
        if not self._waiting:
            return InOrder()
        # Batches before the last gap describe a state that is to be forgotten anyway.
        first = max(self._waiting)
        while first - 1 in self._waiting:
            first -= 1
        self._waiting = {n: batch for n, batch in self._waiting.items() if n >= first}
        self.expected = first
        return InOrder(self._drain(), lost=True)

    def _add(self, number: int, batch: bytes) -> InOrder:
        if number < self.expected:
            return InOrder()
        self._waiting[number] = batch
        ready = self._drain()
        if len(self._waiting) > MAX_WAITING:
            return self.replay_over()
        return InOrder(ready)

    def _drain(self) -> tuple[bytes, ...]:
        ready = []
        while self.expected in self._waiting:
            ready.append(self._waiting.pop(self.expected))
            self.expected += 1
        return tuple(ready)
