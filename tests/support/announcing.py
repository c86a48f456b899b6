"""What a worker's relay announces."""

from __future__ import annotations

from kvstore.messages import PROTOCOL_VERSION, Announce


def announce(worker: str = "prefill-0", generation: str = "g0", seq: int = 0) -> Announce:
    """A prefill worker that is ready."""
    return Announce(
        version=PROTOCOL_VERSION,
        worker=worker,
        role="prefill",
        generation=generation,
        state="ready",
        model="m",
        http="unix:/x",
        ship="zmq+ipc:///x",
        fingerprint="",
        block_size=32,
        max_model_len=8192,
        capacity_blocks=100,
        seq=seq,
    )
