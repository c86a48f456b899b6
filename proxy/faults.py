"""Errors as OpenAI's clients know them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kvstore.credentials import TOKEN_HEADER
from kvstore.errors import ApiError, WireError
from proxy.wire import decoded

FLUSHED = "cache_flushed"
"""The code of a request that was ended since its tenant was flushed; it is cancelled with it."""

RETRY_SECONDS = 1
_MESSAGE_CHARS = 2000
_PARAMETER = re.compile(r"\s*\(parameter=[^()]*\)\Z")  # said again in the error's "param"
_TOO_LONG = re.compile(r"maximum\s+(?:model\s+)?context\s+length", re.IGNORECASE)


def body(error: ApiError) -> bytes:
    """The JSON a client gets for ``error``."""
    return msgspec.json.encode(
        {
            "error": {
                "message": str(error),
                "type": error.kind,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def event(error: ApiError) -> bytes:
    """The same as a server-sent event, for a stream that has begun."""
    return b"data: " + body(error) + b"\n\n"


def unauthorized() -> ApiError:
    """No API key, or none of ours."""
    return ApiError(
        401,
        "Incorrect or missing API key. Send one as 'Authorization: Bearer KEY'.",
        kind="invalid_request_error",
        code="invalid_api_key",
    )


def no_operator() -> ApiError:
    """The cluster's token is missing, or it is another one."""
    return ApiError(
        401,
        f"Only for operators: send what `kvferry token` prints as '{TOKEN_HEADER}'.",
        code="invalid_token",
    )


def unknown_model(name: object, served: str) -> ApiError:
    """The client named a model that no worker serves."""
    return ApiError(
        404,
        f"The model {name!r} does not exist. Served here: {served}.",
        code="model_not_found",
        param="model",
    )


def not_explained(tenant: str, route: str) -> ApiError:
    """An operator named a tenant or a route that is not there."""
    return ApiError(404, f"No tenant {tenant!r} here, or no route {route!r}.", code="not_found")


def overloaded(message: str, retry_after: int = RETRY_SECONDS) -> ApiError:
    """Nothing can take the request now; a try after so many seconds may succeed."""
    return ApiError(503, message, kind="server_error", code="unavailable", retry_after=retry_after)


def flushed() -> ApiError:
    """The tenant's cache was flushed, or the tenant has gone, while the request ran."""
    return ApiError(
        409,
        "This request was ended: what was cached for its tenant has been flushed. Send it again.",
        kind="server_error",
        code=FLUSHED,
    )


def too_many(limit: int) -> ApiError:
    """A tenant has as many requests under way as it may."""
    return ApiError(
        429,
        f"At most {limit} requests of yours may be under way at a time.",
        kind="rate_limit_error",
        code="too_many_requests",
        retry_after=RETRY_SECONDS,
    )


def unknown_tenant(name: str) -> ApiError:
    """An operator named a tenant that is not there."""
    return ApiError(404, f"No tenant {name!r} here.", code="not_found")


def timed_out(seconds: float) -> ApiError:
    """The request used up its time."""
    return ApiError(
        504, f"Not finished within {seconds:g} seconds.", kind="server_error", code="timeout"
    )


def internal() -> ApiError:
    """Our own fault. Says nothing, for what it says might be a prompt."""
    return ApiError(500, "Internal error.", kind="server_error", code="internal_error")


def from_worker(status: int, raw: bytes) -> ApiError:
    """What a client is told when a worker answered ``status`` with ``raw`` as its body.

    4xx keep their status, message and parameter. A failing worker (5xx) is one to turn away
    from, so its clients are told to come again.
    """
    fields = _error_fields(raw)
    message = str(fields.get("message") or f"The worker answered {status}.")[:_MESSAGE_CHARS]
    message = _PARAMETER.sub("", message)
    if status == 501:
        return ApiError(501, message, kind="server_error", code="not_implemented")
    if not 400 <= status < 500:
        return overloaded("The worker serving this request failed.")
    if fields.get("code") == FLUSHED:  # which this proxy may not have heard yet
        return flushed()
    if status in {401, 403}:  # between us and the worker; the client's key was right
        return overloaded("A worker refused this proxy.")
    param = fields.get("param")
    code = fields.get("code")
    too_long = status == 400 and _TOO_LONG.search(message) is not None
    return ApiError(
        status,
        message,
        kind="rate_limit_error" if status == 429 else "invalid_request_error",
        code="context_length_exceeded" if too_long else code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
        retry_after=RETRY_SECONDS if status == 429 else None,
    )


def in_event(event_bytes: bytes) -> ApiError | None:
    """The error that the first of these events carries, if it does."""
    raw = event_bytes.removeprefix(b"data:").partition(b"\n\n")[0].strip()
    if not raw.startswith(b'{"error"'):
        return None
    fields = _error_fields(raw)
    if not fields:
        return None
    status = fields.get("code")
    return from_worker(status if isinstance(status, int) else 500, raw)


def _error_fields(raw: bytes) -> dict[str, Any]:
    try:
        parsed = decoded(raw)
    except WireError:
        return {}
    error = parsed.get("error") if isinstance(parsed, dict) else None
    return error if isinstance(error, dict) else {}
