"""Every message between kvferry's processes. Frozen, tagged, bounded; no behaviour.

Version history of the protocol
    1   first version
    2   a decode worker tells when a request's first step began (``Begun``); ``Outcome.wait_ms``
        counts from the request's arrival in the engine; decode tickets come in two kinds
    3   blocks belong to a KV group; a receiver says how far it wants them and how they are to be
        carried: read from the sender's memory on one host, by a plain bulk connection across them
        (``Hello``, ``Welcome``), by a lane between GPUs (``Rendezvous`` to ``Broken``)
    4   batches may have 8 MiB; a prefill worker tells its gate of prompts that it only ships
        (``Held``), and both tickets say what it is thought to hold
    5   prefill workers tell the DRAM tier's server which blocks its objects hold (``Enrol``,
        ``Filed``), and it feeds their relays; proxies tell each other through relays what they
        have workers busy with (``Engaged``), where ``Announce.proxies`` says that there are others;
        an operator has a worker drain (``Drain``)
    6   what holds for tenants goes from proxies through relays to all who keep KV (``Tenancy``),
        and comes back from where it is in force; what is held of each is told (``Usage``), and when
        a flushed one's memory has been overwritten (``Wiped``); workers announce their adapters

Four conversations:

*Shipping*, decode worker (dials) to prefill worker (listens), one transfer at a time in order::

    decode                                prefill
      Hello ───────────────────────────────▶        where not all goes in frames, and on bulk
      ◀────────────────────────────── Welcome       where its pages lie, or its bulk address
      Ready ───────────────────────────────▶        reservation: from where to where, carried how
      ◀─────────────────────────────── Blocks*      the bytes in a second frame, or where they lie
      Received* ───────────────────────────▶        opens the sender's window again
      ◀─────────────────────────────── Failed       at any time instead of the rest
      Cancel ──────────────────────────────▶        at any time: stop sending

*A lane*, within that conversation, where blocks go by a communicator (:mod:`kvstore.lane`)::

    decode                                prefill
      ◀───────────────────────── Rendezvous       both build the communicator of this epoch
      ◀────────────────────────────── Entry* ▶    what each must know of the other to do so
      ◀─────────────────────────── Shipment*      blocks whose bytes the communicator brings
      Taken* ──────────────────────────────▶      opens the lane again
      ◀───────────────────────────── Broken ─▶    this communicator is over

*Feed*, proxy (dials) to a worker's relay (listens)::

    proxy                                 relay
      Subscribe (every second) ────────────▶        also the subscription's lease
      ◀───────────────────────────── Announce       who the worker is; every second, its lease
      ◀───────────────────────────── Snapshot*      when the subscriber has nothing or missed some
      ◀─────────────────────────────── Delta*       in sequence; a gap means: subscribe anew
      Engaged ─────────────────────────────▶        what this proxy has the worker busy with
      ◀───────────────────────────── Engaged        what another one has
      Drain ───────────────────────────────▶        from an operator, who gets the next Announce
      Tenancy ─────────────────────────────▶        what holds for tenants from now on
      ◀──────────────────────────── Tenancy         to all, and to who is new: what holds there
      ◀────────────────────────────── Usage         every second: what is held of each tenant
      ◀────────────────────────────── Wiped         nothing of a flushed tenant is left there

*The DRAM tier*, of which its server feeds relays as a relay feeds proxies; ``Subscribe`` then names
the relay's worker, and ``Announce`` and what follows it a scope::

    prefill's engine                      the tier's server
      Enrol (with every connection) ───────▶        which scope the worker can load from
      Filed ───────────────────────────────▶        which blocks an object holds; then it is stored

and a relay passes ``Tenancy`` on to it, and its ``Usage`` and ``Wiped`` on to proxies, as of the
relay's worker. Of tenants that were flushed the server tells it in turn, when it is new: the tier
may have outlived all who knew. A worker's engine tells its relay what it uses and has wiped through
a socket of theirs.

A relay starts a new ``generation`` with every start of its engine; sequence numbers count from
zero within it.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

PROTOCOL_VERSION = 6

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Uri = Annotated[str, msgspec.Meta(max_length=512)]
MAX_DETAIL_BYTES = 1024
Detail = Annotated[str, msgspec.Meta(max_length=MAX_DETAIL_BYTES)]
Transfer = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Digest16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Digest32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]
Route = Annotated[bytes, msgspec.Meta(max_length=16)]
"""What a connection is known by to the one who took it."""

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""Bytes."""

Tag = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
"""What a tenant is known by where no names are told."""

Epoch = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

Address = Annotated[int, msgspec.Meta(ge=0, le=1 << 56)]
Groups = Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=64)]
"""One number for every KV group."""

Moment = Annotated[float, msgspec.Meta(ge=0)]
"""Seconds on the host's monotonic clock; of no use on another host."""

Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=86_400_000)]
Hashes = Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
"""Block names (``blockhash.NAME_BYTES`` each), concatenated."""

Role = Literal["prefill", "decode"]
ROLES: tuple[Role, Role] = ("prefill", "decode")
DigestName = Literal["xxh3-128", "none"]
Tier = Literal["gpu", "dram"]
Carriage = Literal["frames", "bulk", "pages", "lane"]
"""In a message's second frame; in one on a plain connection beside; read where the sender has them;
by a communicator.
"""

CARRIAGES: tuple[Carriage, ...] = get_args(Carriage)
LaneKind = Literal["nccl", "gloo"]
"""What a lane's communicator is: between GPUs, or between processes' host memory."""

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


class Hello(Message, frozen=True, tag=True):
    """A decode worker asks how else than in frames it may get blocks.

    It says so once per connection; on a bulk connection it thereby tells its route.
    """

    version: Count


class Welcome(Message, frozen=True, tag=True):
    """How else than in frames a prefill worker's blocks may be had.

    ``bulk``: where it takes plain connections, if it does, from who knows ``token``. ``lane``: the
    communicator it builds, if any, from its ``device`` (the GPU's UUID, "" for host memory). On the
    same host its process ``pid`` may be read (if that is not 0): the page of (layer, block) is
    ``page_bytes`` long and at ``base + layer * layer_step + block * block_step``, and who finds
    ``probe`` at ``probe_at`` reads the right process.
    """

    version: Count
    bulk: Uri = ""
    token: Annotated[str, msgspec.Meta(max_length=64)] = ""
    lane: LaneKind | None = None
    device: Annotated[str, msgspec.Meta(max_length=128)] = ""
    pid: Count = 0
    base: Address = 0
    layer_step: Address = 0
    block_step: Address = 0
    layers: Count = 0
    blocks: Count = 0
    page_bytes: Count = 0
    probe: Digest16 = bytes(16)
    probe_at: Address = 0


class Ready(Message, frozen=True, tag=True):
    """Decode has reserved memory for a prompt's blocks and awaits them.

    Of KV group ``g`` it wants the positions from ``first[g]`` up to ``stop``, which is at most
    ``blocks``, the number of positions of the whole prompt (the last may be partly filled).
    ``route`` is its bulk connection, if that is the carriage. ``ttl_ms`` is what is left of its
    deadline. ``mac`` binds salt and prompt to it.
    """

    version: Count
    transfer: Transfer
    sender_generation: Name
    receiver: Name
    receiver_generation: Name
    fingerprint: Digest32
    layout: Detail
    first: Groups
    stop: Count
    blocks: Count
    carriage: Carriage
    ttl_ms: Count
    mac: Digest32
    route: Route = b""


class Blocks(Message, frozen=True, tag=True):
    """Blocks ``first, first + 1, …`` of a transfer's KV group, with one digest each.

    Their bytes are in the next frame, or in the sender's ``pages`` (its block ids), or come by a
    lane (``Shipment``).
    """

    transfer: Transfer
    sender_generation: Name
    group: Count
    first: Count
    digests: Annotated[tuple[Digest16, ...], msgspec.Meta(min_length=1, max_length=4096)]
    pages: Annotated[tuple[Count, ...], msgspec.Meta(max_length=4096)] = ()


class Rendezvous(Message, frozen=True, tag=True):
    """Build the communicator of this epoch; whatever was before is over."""

    epoch: Count


class Entry(Message, frozen=True, tag=True):
    """One thing a rank tells the other while they build a communicator."""

    epoch: Count
    key: Annotated[str, msgspec.Meta(max_length=512)]
    value: Annotated[bytes, msgspec.Meta(max_length=64 << 10)]


class Shipment(Message, frozen=True, tag=True):
    """Shipment ``sequence`` of an epoch: the communicator brings the bytes of ``blocks``."""

    epoch: Count
    sequence: Count
    blocks: Blocks


class Taken(Message, frozen=True, tag=True):
    """Shipment ``sequence`` is out of the receiver's staging ring."""

    epoch: Count
    sequence: Count


class Broken(Message, frozen=True, tag=True):
    """This epoch's communicator is over."""

    epoch: Count
    detail: Detail


class Received(Message, frozen=True, tag=True):
    """All blocks of a group below position ``through`` have been checked and written."""

    transfer: Transfer
    group: Count
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


class ServedAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A LoRA adapter that an engine serves as the model ``name@revision``, from a folder ``path``.

    ``revision``: a digest of what is in that folder, so that other weights are another model.
    """

    name: Name
    revision: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    path: Uri

    @property
    def model(self) -> str:
        """What the engine knows it by."""
        return f"{self.name}@{self.revision}"


class Announce(Message, frozen=True, tag=True):
    """Who a worker is, what it can do, where it listens; how many ``proxies`` follow its relay."""

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
    proxies: Count = 0
    adapters: Annotated[tuple[ServedAdapter, ...], msgspec.Meta(max_length=64)] = ()


class Engaged(Message, frozen=True, tag=True):
    """What ``proxy`` has sent to a worker and has not had back: ``prompts``, of which it expects
    that computing them takes ``seconds`` from now on. Passed on to the other proxies as it is.
    """

    worker: Name
    generation: Name
    proxy: Name
    prompts: Count
    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Drain(Message, frozen=True, tag=True):
    """A worker is to be sent nothing new (``on``), or may be again."""

    worker: Name
    on: bool


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What holds for the tenant of this ``tag`` (:mod:`kvstore.salts`).

    KV of an ``epoch`` before this one is not to be used by anybody any more. Of each tier's memory
    ``floor`` is kept for it as long as it uses that, and more than ``limit`` it never has.
    """

    tag: Tag
    epoch: Epoch
    floor: Share = 0.0
    limit: Share = 1.0


class Tenancy(Message, frozen=True, tag=True):
    """What holds for some tenants, where it says so: of ``worker``, "" from a proxy.

    Epochs only ever rise; the shares are those that were told last.
    """

    worker: Annotated[str, msgspec.Meta(max_length=128)]
    standings: Annotated[tuple[Standing, ...], msgspec.Meta(max_length=64)]


class Holding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Of one tenant: bytes that can be found again, and in engines those in use besides."""

    tag: Tag
    kept: Size
    used: Size = 0


class Usage(Message, frozen=True, tag=True):
    """Part ``part`` of ``parts`` of what is held of tenants in a worker's ``tier``.

    The tier has ``capacity`` bytes in all.
    """

    worker: Name
    tier: Tier
    capacity: Size
    part: Count
    parts: Count
    holdings: Annotated[tuple[Holding, ...], msgspec.Meta(max_length=1024)]


class Wiped(Message, frozen=True, tag=True):
    """All that a tier held of a tenant from before ``epoch`` has been overwritten."""

    worker: Name
    tier: Tier
    tag: Tag
    epoch: Epoch
    size: Size
    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)]


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


class Enrol(Message, frozen=True, tag=True):
    """A prefill worker can load from the DRAM tier what is filed in ``scope``."""

    worker: Name
    scope: Name


class Filed(Message, frozen=True, tag=True):
    """Which blocks those objects hold that are reserved for tokens ``[start, end)`` of a session.

    ``session`` is LMCache's, ``rank`` whose objects they are; each holds equally many of ``names``.
    Blocks can be loaded in ``scope`` once ``parts`` objects that hold them are stored.
    """

    scope: Name
    parts: Count
    session: Name
    rank: Count
    start: Count
    end: Count
    names: Hashes


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


class Held(Message, frozen=True, tag=True):
    """A prefill engine ships a prompt as it holds it; told to the worker's HTTP gate.

    ``tokens`` of it: all that lie in whole blocks. The rest is decode's to compute, so the engine
    computes nothing for this leg, and the gate ends it. It may be told more than once.
    """

    transfer: Transfer
    tokens: Count
    taken_up: Moment


class Abandon(Message, frozen=True, tag=True):
    """The gate tells the decode side that the prefill leg failed: await nothing more."""

    transfer: Transfer


LaneMessage = Rendezvous | Entry | Shipment | Taken | Broken
ShipMessage = Hello | Welcome | Ready | Blocks | Received | Failed | Cancel | LaneMessage
TenantMessage = Tenancy | Usage | Wiped
FeedMessage = Subscribe | Announce | Engaged | Drain | Snapshot | Delta | TenantMessage
TierMessage = Enrol | Filed
GateReport = Outcome | Begun | Held
GateMessage = GateReport | Abandon
AnyMessage = ShipMessage | FeedMessage | TierMessage | GateMessage


class Times(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker's gate tells the proxy in a header: how long before the answer's first bytes.

    ``Begun`` without its clock: when the request joined the engine's queue, and when its first
    step was scheduled.
    """

    arrived_ms: Milliseconds
    begun_ms: Milliseconds
