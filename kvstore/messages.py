"""Every message between kvferry's processes. Frozen, tagged, bounded; no behaviour.

Version history of the protocol
    1   first version
    2   a decode worker tells when a request's first step began (``Begun``); ``Outcome.wait_ms``
        counts from the request's arrival in the engine; decode tickets come in two kinds

Two conversations:

*Shipping*, decode worker (dials) to prefill worker (listens), one transfer at a time in order::

    decode                                prefill
      Ready ───────────────────────────────▶        reservation: where to start, how much
      ◀─────────────────────────────── Blocks*      each followed by one frame of tensor bytes
      Received* ───────────────────────────▶        opens the sender's window again
      ◀─────────────────────────────── Failed       at any time instead of the rest
      Cancel ──────────────────────────────▶        at any time: stop sending

*Feed*, proxy (dials) to a worker's relay (listens)::

    proxy                                 relay
      Subscribe (every second) ────────────▶        also the subscription's lease
      ◀───────────────────────────── Announce       who the worker is; every second, its lease
      ◀───────────────────────────── Snapshot*      when the subscriber has nothing or missed some
      ◀─────────────────────────────── Delta*       in sequence; a gap means: subscribe anew

A relay starts a new ``generation`` with every start of its engine; sequence numbers count from
zero within it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

PROTOCOL_VERSION = 2

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Uri = Annotated[str, msgspec.Meta(max_length=512)]
Detail = Annotated[str, msgspec.Meta(max_length=1024)]
Transfer = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Digest16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Digest32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]
Moment = Annotated[float, msgspec.Meta(ge=0)]
"""Seconds on the host's monotonic clock; of no use on another host."""

Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=86_400_000)]
Hashes = Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
"""Block names (``blockhash.NAME_BYTES`` each), concatenated."""

Role = Literal["prefill", "decode"]
ROLES: tuple[Role, Role] = ("prefill", "decode")
Tier = Literal["gpu", "dram"]
WorkerState = Literal["starting", "ready", "draining"]
FailReason = Literal[
    "unknown-transfer",
    "layout-mismatch",
    "not-authentic",
    "stale-generation",
    "prefill-failed",
    "lease-expired",
    "deadline",
    "peer-lost",
    "digest-mismatch",
    "protocol",
    "abandoned",
    "overloaded",
]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all messages; the wire name of each is its class name."""


class Ready(Message, frozen=True, tag=True):
    """Decode has reserved memory for ``blocks - first`` blocks of a prompt and awaits them.

    ``first`` is the position of the first block it lacks, ``blocks`` the number of blocks of the
    whole prompt (the last may be partly filled). ``ttl_ms`` is what is left of its deadline.
    ``mac`` binds transfer, both generations, salt, fingerprint and prompt digest.
    """

    version: Count
    transfer: Transfer
    sender_generation: Name
    receiver: Name
    receiver_generation: Name
    fingerprint: Digest32
    layout: Detail
    first: Count
    blocks: Count
    ttl_ms: Count
    mac: Digest32


class Blocks(Message, frozen=True, tag=True):
    """Blocks ``first, first + 1, …`` of a transfer; one digest each; bytes in the next frame."""

    transfer: Transfer
    sender_generation: Name
    first: Count
    digests: Annotated[tuple[Digest16, ...], msgspec.Meta(min_length=1, max_length=4096)]


class Received(Message, frozen=True, tag=True):
    """All blocks below position ``through`` have been checked and written."""

    transfer: Transfer
    through: Count


class Failed(Message, frozen=True, tag=True):
    """The sender gives this transfer up; the receiver recomputes."""

    transfer: Transfer
    reason: FailReason
    detail: Detail


class Cancel(Message, frozen=True, tag=True):
    """The receiver no longer wants this transfer; nothing more is to be sent."""

    transfer: Transfer


class Subscribe(Message, frozen=True, tag=True):
    """A proxy wants a worker's cache state from after ``seq`` of ``generation`` on.

    An unknown generation (the empty string at first) or a sequence number that the relay cannot
    continue from is answered with a snapshot.
    """

    version: Count
    proxy: Name
    generation: Annotated[str, msgspec.Meta(max_length=128)]
    seq: Count


class Announce(Message, frozen=True, tag=True):
    """Who a worker is, what it can do, where it listens."""

    version: Count
    worker: Name
    role: Role
    generation: Name
    state: WorkerState
    model: Name
    http: Uri
    ship: Uri
    fingerprint: Annotated[str, msgspec.Meta(max_length=64)]
    block_size: Count
    max_model_len: Count
    capacity_blocks: Count
    seq: Count


class Snapshot(Message, frozen=True, tag=True):
    """Part ``part`` of ``parts`` of all blocks a worker holds in ``tier`` as of ``seq``.

    Part 0 comes first and begins the replacement of everything known of the worker.
    """

    worker: Name
    generation: Name
    seq: Count
    part: Count
    parts: Count
    tier: Tier
    held: Hashes


class Delta(Message, frozen=True, tag=True):
    """What changed with sequence number ``seq``; ``cleared`` empties the tier first."""

    worker: Name
    generation: Name
    seq: Count
    tier: Tier
    cleared: bool
    added: Hashes
    removed: Hashes


class Outcome(Message, frozen=True, tag=True):
    """What became of a transfer on the decode side, told to the worker's HTTP gate.

    ``local_tokens`` were in decode's own cache, ``received_tokens`` came by ship. ``wait_ms`` is
    from the request's arrival in decode's engine to the transfer's end: its last block in place,
    or its failure. ``reason`` is set where the transfer failed and decode recomputed.
    """

    transfer: Transfer
    shipped: bool
    local_tokens: Count
    received_tokens: Count
    received_bytes: Count
    wait_ms: Milliseconds
    reason: FailReason | None = None


class Begun(Message, frozen=True, tag=True):
    """A decode engine schedules a request's first step; told to the worker's HTTP gate.

    It follows the request's ``Outcome``, if there is one. ``arrived``: the request joined the
    engine's queue.
    """

    transfer: Transfer
    arrived: Moment
    begun: Moment


class Abandon(Message, frozen=True, tag=True):
    """The gate tells the decode side that the prefill leg failed: await nothing more."""

    transfer: Transfer


ShipMessage = Ready | Blocks | Received | Failed | Cancel
FeedMessage = Subscribe | Announce | Snapshot | Delta
GateMessage = Outcome | Begun | Abandon
AnyMessage = ShipMessage | FeedMessage | GateMessage


class Times(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker's gate tells the proxy in a header: how long before the answer's first bytes.

    ``Begun`` without its clock: when the request joined the engine's queue, and when its first
    step was scheduled.
    """

    arrived_ms: Milliseconds
    begun_ms: Milliseconds
