"""``python -m tests.fuzz.seed_corpus``: writes the corpus anew, after a change of the protocol.

Every message once at every door that may see it, and the transfer's own blocks: right, cut short,
with a flipped digest, out of order, of another group, too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from kvstore.codec import encode
from kvstore.messages import Blocks, Cancel, Received, ShipMessage
from kvstore.transport.digests import Keyed, Xxh3
from tests.contract.test_wire_golden import SAMPLES
from tests.fuzz.target import (
    BLOCKS,
    BULK,
    CODEC,
    CONTROL,
    KEY,
    LAYOUT,
    SENDER,
    UNDER_WAY,
    errand,
    pack,
)
from tests.support.transfers import GENERATION, Noise

CORPUS = Path(__file__).parent / "corpus"


def seeds() -> Iterator[tuple[str, bytes]]:
    """A name and an input."""
    for message in SAMPLES:
        name = type(message).__name__.lower()
        yield f"codec-{name}", pack(CODEC, encode(message))
        if isinstance(message, ShipMessage):
            yield f"control-{name}", pack(CONTROL, encode(message))
            yield f"sender-{name}", pack(SENDER, encode(message))
    yield from _of_the_transfer()


def _of_the_transfer() -> Iterator[tuple[str, bytes]]:
    wanted, source = errand(), Noise(LAYOUT, BLOCKS, 1)
    transfer = wanted.transfer
    payload = source.of(wanted.source[0, 0]) + source.of(wanted.source[0, 1])
    pieces = [source.pages.pieces(wanted.source[0, at]) for at in range(2)]
    plain = Xxh3().of((transfer, 0, 0), pieces)
    right = Blocks(transfer, GENERATION, 0, 0, plain)
    damaged = replace(right, digests=(plain[0], plain[1][::-1]))
    yield "blocks-right", pack(CONTROL, encode(right), payload)
    yield "blocks-damaged", pack(CONTROL, encode(damaged), payload)
    yield "blocks-short", pack(CONTROL, encode(right), payload[:-1])
    yield "blocks-early", pack(CONTROL, encode(replace(right, first=1)), payload)
    yield "blocks-group", pack(CONTROL, encode(replace(right, group=1)), payload)
    yield "blocks-many", pack(CONTROL, encode(replace(right, digests=plain * 2)), payload * 2)
    yield "blocks-in-pages", pack(CONTROL, encode(replace(right, pages=(1, 2))))
    block = source.bytes[:, 0].view("u1").reshape(-1)
    keyed = Keyed(KEY, LAYOUT.fingerprint).of((transfer, 0, 0), [[block]])
    yield "bulk-blocks", pack(BULK, encode(replace(right, digests=keyed)), payload[:32])
    ready = wanted.ready(LAYOUT, bytes(32))
    yield "ready-forged", pack(SENDER, encode(ready))
    yield "ready-signed", pack(SENDER, encode(wanted.ready(LAYOUT, KEY)))
    for group in range(3):
        yield f"received-{group}", pack(UNDER_WAY, encode(Received(transfer, group, 2)))
    yield "cancel", pack(UNDER_WAY, encode(Cancel(transfer)))
    yield "ready-again", pack(UNDER_WAY, encode(wanted.ready(LAYOUT, KEY)))


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    for old in CORPUS.glob("seed-*"):
        old.unlink()
    for name, data in seeds():
        (CORPUS / f"seed-{name}").write_bytes(data)


if __name__ == "__main__":
    main()
