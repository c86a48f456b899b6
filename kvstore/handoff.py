"""The tickets a proxy puts into ``kv_transfer_params`` of the two legs of one request.

Both legs carry the same ``transfer`` (128 random bits), so neither needs the other's request id.
A ticket is data, not authority: what opens a transfer is the MAC of ``Ready`` (kvstore.transfer).
"""

from __future__ import annotations

from typing import Annotated, Protocol, TypeVar

import msgspec

from kvstore.errors import WireError

PARAMS_KEY = "kvferry"
"""Where a ticket lies inside ``kv_transfer_params``."""

TransferHex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class PrefillTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the prefill leg: ship this prompt's KV to whoever proves to be its decode leg."""

    transfer: TransferHex
    ttl_ms: Annotated[int, msgspec.Meta(gt=0, le=3_600_000)]


class DecodeTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the decode leg: fetch this prompt's KV from ``ship``, from this generation of it."""

    transfer: TransferHex
    ttl_ms: Annotated[int, msgspec.Meta(gt=0, le=3_600_000)]
    ship: Annotated[str, msgspec.Meta(max_length=512)]
    sender_generation: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


Ticket = PrefillTicket | DecodeTicket
T = TypeVar("T", PrefillTicket, DecodeTicket)


class EngineRequest(Protocol):
    """What the two legs' engines read of vLLM's request."""

    @property
    def request_id(self) -> str: ...
    @property
    def prompt_token_ids(self) -> list[int] | None: ...
    @property
    def cache_salt(self) -> str | None: ...
    @property
    def kv_transfer_params(self) -> dict[str, object] | None: ...


def to_params(ticket: Ticket) -> dict[str, object]:
    """``kv_transfer_params`` of a leg."""
    return {PARAMS_KEY: msgspec.to_builtins(ticket)}


def prefill_ticket(params: object) -> PrefillTicket | None:
    """The prefill ticket in a request's ``kv_transfer_params``, None if there is none.

    Raises WireError on a malformed one.
    """
    return _ticket(params, PrefillTicket)


def decode_ticket(params: object) -> DecodeTicket | None:
    """The decode ticket, as ``prefill_ticket``."""
    return _ticket(params, DecodeTicket)


def _ticket(params: object, kind: type[T]) -> T | None:
    if not isinstance(params, dict) or PARAMS_KEY not in params:
        return None
    try:
        return msgspec.convert(params[PARAMS_KEY], type=kind, strict=True)
    except msgspec.ValidationError as error:
        raise WireError(f"malformed ticket: {error}") from None
