"""The proxy's HTTP interface as OpenAPI documents, with bodies as vLLM's own models say."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from proxy.parts import ROLES
from proxy.requests import AFFINITY_HEADER, ISOLATION_HEADER

_REF = "#/components/schemas/{model}"
_BODIES: dict[str, type[BaseModel]] = {"chat": ChatCompletionRequest}
_BODIES["completions"] = CompletionRequest
_OURS = {
    "no_store": {"type": ["boolean", "null"]},
    "prompt_cache_isolation_key": {"type": "string", "minLength": 1, "maxLength": 256},
    "prompt_cache_key": {"type": "string", "maxLength": 256},
}
_TEXT = {"type": "string", "minLength": 1}
_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": sorted(ROLES)},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}
"""Most of what vLLM describes as a message is refused."""
_ANSWER = {"responses": {"default": {"description": "anything"}}}


def clients(model: str) -> dict[str, Any]:
    """What is open to clients. ``model``: the one that is served."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": _generation("chat", model, schemas)},
        "/v1/completions": {"post": _generation("completions", model, schemas)},
    }
    for path in ("/v1/models", "/health", "/ready"):
        paths[path] = {"get": _ANSWER}
    return _document(paths, schemas)


def operators(model: str) -> dict[str, Any]:
    """What is open to operators."""
    schemas: dict[str, Any] = {}
    explained = {
        **_generation("chat", model, schemas),
        "parameters": [_in_path("tenant"), _in_path("route")],
    }
    paths = {
        "/admin/tenants": {"get": _ANSWER},
        "/admin/tenants/{tenant}/flush": {"post": {**_ANSWER, "parameters": [_in_path("tenant")]}},
        "/kvferry/explain/{tenant}/{route}": {"post": explained},
        "/metrics": {"get": _ANSWER},
    }
    return _document(paths, schemas)


def _document(paths: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "kvferry", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _generation(route: str, model: str, schemas: dict[str, Any]) -> dict[str, Any]:
    described = _BODIES[route].model_json_schema(ref_template=_REF)
    schemas.update(described.pop("$defs", {}))
    described["properties"] |= _OURS
    described["properties"]["model"] = {"enum": [model, model, None, "another"]}
    if route == "chat":
        messages = described["properties"]["messages"]
        messages["items"] = {"anyOf": [_MESSAGE, _MESSAGE, messages["items"]]}
        messages["minItems"] = 1
    else:
        prompt = described["properties"]["prompt"]
        described["properties"]["prompt"] = {"anyOf": [_TEXT, _TEXT, prompt]}
        described["required"] = ["prompt"]
    schemas[route] = described
    content = {"application/json": {"schema": {"$ref": _REF.format(model=route)}}}
    headers = [_header(name) for name in (AFFINITY_HEADER, ISOLATION_HEADER, "cache-control")]
    return {**_ANSWER, "requestBody": {"content": content}, "parameters": headers}


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string", "maxLength": 300}}


def _in_path(name: str) -> dict[str, Any]:
    known = {"enum": ["alice", "bob", "nobody", "chat", "completions"]}
    return {"name": name, "in": "path", "required": True, "schema": known}
