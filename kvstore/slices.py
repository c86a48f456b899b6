"""Tensor parallelism: which KV heads travel between which ranks. Pure.

Every rank of a worker holds some of the model's KV heads, one run of bytes for each in every page.
Where prefill and decode workers have different numbers of ranks, pages are cut into **slices**: as
many as the least common multiple of both, so that each belongs to one rank on either side. A slice
is shipped by itself, between addresses of its own.

    prefill, 1 rank     heads 0 1 │ 2 3        slices 0 and 1
    decode, 2 ranks     heads 0 1 │ 2 3        slice 0 to rank 0, slice 1 to rank 1
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.errors import ConfigError

PORTS = 4
"""TCP ports between one slice's address and the next one's."""


@dataclass(frozen=True)
class HeadSlice:
    """Slice ``number`` of ``count``: of the KV heads a rank holds, ``first`` to ``stop``."""

    number: int
    count: int
    first: int
    stop: int


def slices_of_rank(kv_heads: int, count: int, rank: int, ranks: int) -> tuple[HeadSlice, ...]:
    """The slices, of ``count``, that are ``rank``'s of ``ranks``, of a model with ``kv_heads``.

    Raises ConfigError where heads cannot be divided so: ranks would then hold copies of one head.
    """
    if count > 1 and kv_heads % count:
        raise ConfigError(
            f"{kv_heads} KV heads cannot be cut into {count} slices: choose prefill.ranks and "
            "decode.ranks whose least common multiple divides the model's KV heads"
        )
    if count % ranks:
        raise ConfigError(f"{count} slices cannot be shared out to {ranks} ranks")
    each, size = count // ranks, max(1, kv_heads // count)
    return tuple(
        HeadSlice(rank * each + at, count, at * size, (at + 1) * size) for at in range(each)
    )


def slice_address(address: str, number: int) -> str:
    """Where slice ``number`` of the worker at ``address`` is: another port or another socket."""
    if number == 0:
        return address
    scheme, _, rest = address.partition("://")
    if rest.startswith("/"):
        return f"{address}.{number}"
    host, _, port = rest.rpartition(":")
    return f"{scheme}://{host}:{int(port) + PORTS * number}"
