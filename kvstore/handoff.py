"""What lies in ``kv_transfer_params``: tickets on a leg's way out, a report on its way back.

Both legs carry the same ``transfer`` (128 random bits), so neither needs the other's request id.
A ticket is data, not authority: what opens a transfer is the MAC of ``Ready`` (kvstore.transfer).
The decode leg has nothing on its way back, since vLLM tells a stream's end nothing of ours: its
worker's gate tells (decode.gate).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec

from kvstore.errors import WireError
from kvstore.messages import Count, Milliseconds, Standing

PARAMS_KEY = "kvferry"
"""Where a ticket or a report lies inside ``kv_transfer_params``."""

TransferHex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


ShipUri = Annotated[
    str,
    msgspec.Meta(
        max_length=512,
        pattern=r"^[a-z+]{2,10}://(/[^\s]*|[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5})$",
    ),
]
"""A path, or host and port, behind a transport's scheme."""


class PrefillTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the prefill leg: ship this prompt's KV to whoever proves to be its decode leg.

    ``held``: as the decode leg is told. Where that one computes the rest (``decode_computes_rest``)
    and all else is here indeed, nothing is computed for this leg.
    """

    transfer: TransferHex
    ttl_ms: Annotated[int, msgspec.Meta(gt=0, le=3_600_000)]
    held: Count = 0


class DecodeTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="fetch"):
    """For the decode leg: fetch this prompt's KV from ``ship``, from this generation of it.

    ``held`` tokens of it are believed to be there already: where little is missing, decode computes
    the rest itself instead of waiting for it.
    """

    transfer: TransferHex
    ttl_ms: Annotated[int, msgspec.Meta(gt=0, le=3_600_000)]
    ship: ShipUri
    sender_generation: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    held: Count = 0


class LocalTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="local"):
    """For a decode leg that computes its prompt itself: nothing to fetch.

    ``transfer`` only names the leg, so that its worker can tell when it began.
    """

    transfer: TransferHex


class PrefillReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prefill leg's own account of itself.

    ``prefill_ms``: from its first forward pass being scheduled to the end of its last; where it had
    none, from its being taken up to the leg's end. Of the prompt, ``gpu_tokens`` were in engine
    memory and ``dram_tokens`` came from the DRAM tier.
    """

    prefill_ms: Milliseconds
    gpu_tokens: Count
    dram_tokens: Count


class TenancyTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tenancy"):
    """For the scheduler half of an engine, from its own gate: what holds for tenants from now on.

    The request that carries it is an errand: its prompt and answer are nobody's.
    """

    standings: Annotated[tuple[Standing, ...], msgspec.Meta(max_length=64)]


class TenancyReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an errand brings back: ``flushing`` tenants have memory that is not overwritten yet."""

    flushing: Count


Ticket = PrefillTicket | DecodeTicket | LocalTicket | TenancyTicket
Report = PrefillReport | TenancyReport


class EngineRequest(Protocol):
    """What the two legs' engines read of vLLM's request."""

    @property
    def request_id(self) -> str: ...
    @property
    def prompt_token_ids(self) -> list[int] | None: ...
    @property
    def cache_salt(self) -> str | None: ...
    @property
    def block_hashes(self) -> Sequence[bytes]: ...
    @property
    def kv_transfer_params(self) -> dict[str, object] | None: ...


def to_params(content: Ticket | Report) -> dict[str, object]:
    """``kv_transfer_params`` of a leg, or of its answer."""
    return {PARAMS_KEY: msgspec.to_builtins(content)}


def whole_blocks(length: int, block_size: int) -> int:
    """Tokens in whole blocks before a prompt's last token, which decode computes in any case."""
    return max(0, length - 1) // block_size * block_size


def decode_computes_rest(held: int, length: int, block_size: int) -> bool:
    """Whether decode computes all that follows a prompt's whole blocks.

    It does where its ticket says that prefill holds those. Both legs must come to one answer.
    """
    return 0 < whole_blocks(length, block_size) <= held


def prefill_ticket(params: object) -> PrefillTicket | None:
    """The prefill ticket in a request's ``kv_transfer_params``, None if there is none.

    Raises WireError on a malformed one.
    """
    ticket: PrefillTicket | None = _inside(params, PrefillTicket)
    return ticket


def decode_ticket(params: object) -> DecodeTicket | LocalTicket | None:
    """The decode leg's ticket, as ``prefill_ticket``."""
    ticket: DecodeTicket | LocalTicket | None = _inside(params, DecodeTicket | LocalTicket)
    return ticket


def prefill_report(params: object) -> PrefillReport | None:
    """The report in an answer's ``kv_transfer_params``, as ``prefill_ticket``."""
    report: PrefillReport | None = _inside(params, PrefillReport)
    return report


def tenancy_ticket(params: object) -> TenancyTicket | None:
    """The ticket of an errand, as ``prefill_ticket``; None for any other kind of ticket."""
    inside = params.get(PARAMS_KEY) if isinstance(params, dict) else None
    if not isinstance(inside, dict) or inside.get("type") != "tenancy":
        return None
    ticket: TenancyTicket = _inside(params, TenancyTicket)
    return ticket


def tenancy_report(params: object) -> TenancyReport | None:
    """What an errand has brought back, as ``prefill_ticket``."""
    report: TenancyReport | None = _inside(params, TenancyReport)
    return report


def _inside(params: object, kind: Any) -> Any:  # noqa: ANN401 (one type or a union)
    if not isinstance(params, dict) or PARAMS_KEY not in params:
        return None
    try:
        return msgspec.convert(params[PARAMS_KEY], type=kind, strict=True)
    except msgspec.ValidationError as error:
        raise WireError(f"malformed ticket or report: {error}") from None
