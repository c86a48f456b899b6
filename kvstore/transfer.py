"""How a prompt's blocks travel: the theory, and what binds the two ends together.

A transfer, seen from both ends::

    sending.SenderCore (prefill)                receiving.ReceiverCore (decode)
    open       the engine takes the prompt up   begin     memory is reserved, Ready goes out
    Ready      who wants it, from where on      accept    Blocks: checked, where to write them
    supply     pages whose KV is computed       placed    written; Received goes out
    next_batch what to send now                 ended     all there, or failed: told once
    settled    pages no longer needed: told once

``Ready`` may come before ``open`` and pages before either; the order of the three does not matter.
A place is a pair (KV group, position); positions count a prompt's blocks from zero. The sender
keeps at most ``window`` unacknowledged blocks of a transfer on the way, the receiver takes those
of a group only in order, so neither can be made to hold more than it reserved.

Both are state machines without sockets, threads or clocks: times are absolute, from one monotonic
clock of the caller's.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from kvstore.messages import Ready


@dataclass(frozen=True)
class Prompt:
    """What both ends must agree on beyond the transfer's number; goes into the MAC."""

    salt: str
    digest: bytes
    blocks: int


def ready_mac(key: bytes, ready: Ready, prompt: Prompt) -> bytes:
    """HMAC-SHA256 that only a worker of this cluster with the same prompt and salt can make."""
    fields = (
        ready.transfer,
        ready.sender_generation.encode(),
        ready.receiver_generation.encode(),
        ready.fingerprint,
        prompt.salt.encode(),
        prompt.digest,
        prompt.blocks.to_bytes(8, "little"),
        b"".join(first.to_bytes(8, "little") for first in ready.first),
        ready.stop.to_bytes(8, "little"),
    )
    framed = b"".join(len(part).to_bytes(4, "little") + part for part in fields)
    return hmac.digest(key, framed, "sha256")
