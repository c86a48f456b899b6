"""The body each worker gets for one client request.

The prefill leg is built anew: the prompt's tokens and nothing of the client's, since nothing
else changes a KV block. The decode leg is the client's own body with the prompt already in
tokens, so that a prompt is tokenized once.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kvstore.handoff import DecodeTicket, LocalTicket, PrefillTicket, to_params
from proxy import parts
from proxy.requests import ClientRequest

PREFILL_PATH = "/v1/completions"

_PROMPT_SHAPING = ("suffix", "truncate_prompt_tokens", "truncation_side")
"""Fields of a completion that are already spent once its prompt is in tokens."""


def prefill_body(
    model: str, prompt: msgspec.Raw, salt: str, ticket: PrefillTicket
) -> dict[str, Any]:
    """For the prefill worker (``PREFILL_PATH``): keep this prompt's KV, and ship it.

    ``prompt``: its tokens.
    """
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "stream": False,
        "cache_salt": salt,
        "kv_transfer_params": to_params(ticket),
    }


def decode_body(
    request: ClientRequest,
    salt: str,
    prompt: msgspec.Raw | None,
    ticket: DecodeTicket | LocalTicket | None,
) -> dict[str, Any]:
    """For the decode worker: what the client asked for.

    ``prompt``: its tokens; None where it could not be rendered beforehand. A stream always reports
    its usage: the proxy needs it even where the client does not.
    """
    body = {**request.body, "cache_salt": salt}
    if request.stream:
        options = dict(body.get("stream_options") or {})
        if not request.wants_usage:
            options.pop("continuous_usage_stats", None)
        body["stream_options"] = {**options, "include_usage": True}
    if request.media:
        body["messages"] = parts.named(body["messages"], salt)
    params = to_params(ticket) if ticket else {}
    if prompt is not None and request.route == "completions":
        body["prompt"] = prompt
        for field in _PROMPT_SHAPING:
            body.pop(field, None)
    elif prompt is not None:
        params["prompt_token_ids"] = prompt
    if params:
        body["kv_transfer_params"] = params
    return body


def length_body(request: ClientRequest) -> dict[str, Any] | None:
    """For a worker's ``/tokenize``, to learn how long a prompt is; None where it cannot tell."""
    fields = _CHAT_LENGTH if request.route == "chat" else _COMPLETION_LENGTH
    if request.route == "completions" and not isinstance(request.body.get("prompt"), str):
        return None
    return {name: request.body[name] for name in fields if name in request.body}


_CHAT_LENGTH = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template_kwargs",
)
_COMPLETION_LENGTH = ("model", "prompt", "add_special_tokens")
