"""What a connector's scheduler half reads of vLLM's request."""

from __future__ import annotations

from dataclasses import dataclass, field

TAG = "0123456789abcdef"
SALT = f"{TAG}-0-" + "5a" * 32
ONCE = f"{TAG}-0-once-" + "5a" * 32
"""Of a request of which nothing is kept."""


@dataclass
class Request:
    """Stands in for vLLM's own (``kvstore.handoff.EngineRequest``)."""

    request_id: str
    prompt_token_ids: list[int]
    cache_salt: str = SALT
    kv_transfer_params: dict[str, object] | None = None
    block_hashes: list[bytes] = field(default_factory=list)
