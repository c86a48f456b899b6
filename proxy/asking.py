"""A prompt's exact tokens, from a worker's own template and tokenizer (vLLM's render endpoints).

Asking vLLM first also means that a request it would refuse is refused before any leg starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kvstore.errors import ApiError, WireError, WorkerLost
from kvstore.messages import Announce
from proxy import faults, legs
from proxy.requests import PATHS, ClientRequest
from proxy.upstream import REQUEST_HEADER, Upstream
from proxy.wire import decoded

TOKENS = 1 << 32
"""No model has more: a block's name is made of such numbers."""
ATTEMPTS = 2
"""How many workers are asked before the request is given up."""

_CUT_SHORT = re.compile(r"contains at least \d+ input tokens")


class _Rendered(msgspec.Struct):
    token_ids: list[int]
    features: Any = None


@dataclass(frozen=True)
class Rendered:
    """The prompt in tokens, or ``alone``: why it cannot be handed to two workers."""

    tokens: list[int] | None
    alone: str | None = None


async def render(
    upstream: Upstream, workers: Sequence[Announce], request: ClientRequest, request_id: str
) -> Rendered:
    """The prompt of ``request``, rendered by the first of ``workers`` that answers.

    Raises ApiError: vLLM's own refusal of the request, or 503 if no worker answers.
    """
    for worker in workers[:ATTEMPTS]:
        try:
            return await ask(upstream, worker, request, request_id)
        except WorkerLost:
            continue
    raise faults.overloaded("No decode worker is ready.")


async def ask(
    upstream: Upstream, worker: Announce, request: ClientRequest, request_id: str
) -> Rendered:
    """The prompt of ``request``, rendered by ``worker``. Raises ApiError and WorkerLost."""
    headers = {REQUEST_HEADER: request_id}
    path = f"{PATHS[request.route]}/render"
    reply = await upstream.post(worker.http, path, request.body, headers)
    try:
        raw = await reply.body()
    finally:
        reply.close()
    if reply.status != 200:
        error = faults.from_worker(reply.status, raw)
        raise await _with_length(upstream, worker, request, headers, error)
    return _rendered(raw)


def _rendered(raw: bytes) -> Rendered:
    try:
        prompts = decoded(raw, list[_Rendered]) if raw[:1] == b"[" else [decoded(raw, _Rendered)]
    except WireError:
        raise WorkerLost("a worker's rendering is not one of vLLM's", connected=True) from None
    if len(prompts) != 1:
        return Rendered(None, "multi-prompt")
    if prompts[0].features is not None:
        return Rendered(None, "non-text")
    tokens = prompts[0].token_ids
    if tokens and not (min(tokens) >= 0 and max(tokens) < TOKENS):
        return Rendered(None, "no-tokens")  # a client's own numbers: vLLM says what is wrong
    return Rendered(tokens)


async def _with_length(
    upstream: Upstream,
    worker: Announce,
    request: ClientRequest,
    headers: dict[str, str],
    error: ApiError,
) -> ApiError:
    """``error``, naming the prompt's true length where vLLM did not count to its end."""
    body = legs.length_body(request)
    if body is None or not _CUT_SHORT.search(str(error)):
        return error
    try:
        reply = await upstream.post(worker.http, "/tokenize", body, headers)
        try:
            counted = decoded(await reply.body(), _Counted)
        finally:
            reply.close()
    except (WorkerLost, WireError):
        return error
    return ApiError(
        error.status,
        f"This model's maximum context length is {counted.max_model_len} tokens. However, your "
        f"prompt contains {counted.count} tokens. Please reduce the length of the prompt.",
        kind=error.kind,
        code=error.code,
        param="messages" if request.route == "chat" else "prompt",
    )


class _Counted(msgspec.Struct):
    count: int
    max_model_len: int
