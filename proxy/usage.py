"""How many of a prompt's tokens nobody had to compute for this request.

Neither leg knows. The decode leg counts what was shipped to it as cached; the prefill leg does
not know whether its work was used. Put together::

    path            cached tokens
    decode-only     what the decode worker had; what both had where a prefill leg ran in vain
    disaggregated   what the prefill worker had: one of both computed the rest
    recomputed      what both had: anything else was computed by one of them, and where the
                    prefill worker never got the request, what decode had

Where a leg's figure stays unknown it counts as zero: tokens are never called cached on a guess.
What lay in the DRAM tier is told apart only where the prefill worker's copy was the one used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from kvstore.errors import WireError, WorkerLost
from kvstore.handoff import PrefillReport
from kvstore.messages import Outcome, Tier
from proxy.wire import decoded

MOST_TOKENS = 1 << 32

Path = Literal["disaggregated", "decode-only", "recomputed"]


@dataclass(frozen=True)
class PrefillEnd:
    """How a prefill leg ended. ``connected``: the worker may have computed something.

    ``cached`` is what it had of the prompt, as vLLM counted (None: unknown); ``failure`` says why
    it failed; ``report`` is the worker's own account, if it gave one.
    """

    connected: bool
    cached: int | None = None
    failure: str | None = None
    report: PrefillReport | None = None

    @property
    def had(self) -> int:
        """Tokens it had of the prompt; vLLM also counts those whose load failed."""
        cached = self.cached or 0
        if self.report is None:
            return cached
        return min(cached, self.report.gpu_tokens + self.report.dram_tokens)


@dataclass(frozen=True)
class Account:
    """The tokens of one finished request, as far as they are known."""

    prompt: int
    completion: int
    cached: int


def path_taken(alone: str | None, ticketed: bool, outcome: Outcome | None) -> tuple[Path, str]:
    """Which path a request took, and why it was not disaggregated ("" if it was).

    ``alone`` is why it was not planned to be, None if it was; ``ticketed`` is whether the decode
    worker that answered had a ticket for the transfer.
    """
    if alone is not None:
        return "decode-only", alone
    if not ticketed:
        return "recomputed", "decode-lost"
    if outcome is None:
        return "recomputed", "no-outcome"
    if not outcome.shipped:
        return "recomputed", outcome.reason or "not-shipped"
    if outcome.received_tokens == 0:  # its own cache had nearly all of the prompt
        return "decode-only", "decode-holds"
    return "disaggregated", ""


def cached_tokens(
    path: Path, outcome: Outcome | None, decode_cached: int, prefill: PrefillEnd | None
) -> int:
    """See the table above. ``decode_cached`` is what the decode leg itself reported."""
    local = outcome.local_tokens if outcome is not None else decode_cached
    if prefill is None:
        return decode_cached
    if path == "disaggregated":
        return prefill.had
    if not prefill.connected:
        return local
    return min(prefill.had, local)


def tiers(path: Path, cached: int, prefill: PrefillEnd | None) -> dict[Tier, int]:
    """The ``cached`` tokens of a request by the tier they were found in."""
    dram = 0
    if path == "disaggregated" and prefill is not None and prefill.report is not None:
        dram = min(cached, prefill.report.dram_tokens)
    return {"gpu": cached - dram, "dram": dram}


def tiers_header(found: Mapping[Tier, int]) -> str:
    """``tiers`` as a header's value."""
    return ", ".join(f"{tier}={tokens}" for tier, tokens in found.items())


def reported_cached(usage: object) -> int:
    """``prompt_tokens_details.cached_tokens`` of a worker's usage object; 0 if absent."""
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return _counted(cached)


def amended(usage: dict[str, Any], cached: int) -> dict[str, Any]:
    """``usage`` with the true number of cached tokens."""
    details = dict(usage.get("prompt_tokens_details") or {})
    details.pop("created_cache_tokens", None)  # one leg's view, untrue of the whole
    return {**usage, "prompt_tokens_details": {**details, "cached_tokens": cached}}


def account(usage: dict[str, Any], cached: int) -> Account:
    """What to enter in the books for ``usage``."""
    return Account(_count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), cached)


def _count(usage: dict[str, Any], name: str) -> int:
    return _counted(usage.get(name))


def _counted(told: object) -> int:
    """A worker's count; 0 where it is none, or none that a request could have."""
    return told if type(told) is int and 0 <= told <= MOST_TOKENS else 0


def split_reply(raw: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, Any]]:
    """A whole reply's fields, still encoded, and its usage. Raises WorkerLost if it is none."""
    try:
        fields = decoded(raw, dict[str, msgspec.Raw])
        usage = decoded(bytes(fields["usage"]), dict[str, Any])
    except (WireError, KeyError):
        raise WorkerLost("a worker's reply is not one of vLLM's", connected=True) from None
    return fields, usage


def whole_reply(fields: dict[str, msgspec.Raw], usage: dict[str, Any]) -> bytes:
    """The client's copy of a whole reply: true usage, and nothing of the transfer."""
    kept = {name: raw for name, raw in fields.items() if name not in _INTERNAL}
    return msgspec.json.encode({**kept, "usage": usage})


_INTERNAL = frozenset({"kv_transfer_params", "ec_transfer_params"})
