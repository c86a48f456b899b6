"""Asks a deployment as its tenants do, and as the operator who is told what the index thinks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import msgspec

from bench.audit.deployment import TestTenant
from bench.client import Client, Endpoint, Timeline
from bench.errors import RequestFailed
from bench.records import PATH_HEADER, TIERS

PLAN_HEADER = "x-kvferry-plan"
CACHED_HEADER = "x-kvferry-cached"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

_KNOWN_SECONDS = 5.0
_DOUBTED_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_SHOWN = 160


class Known(msgspec.Struct, frozen=True):
    """Tokens of a prompt that the index finds, on the workers that have most of it."""

    prefill_gpu: int = 0
    prefill_dram: int = 0
    decode_gpu: int = 0

    @property
    def total(self) -> int:
        """Whatever there is."""
        return self.prefill_gpu + self.prefill_dram + self.decode_gpu

    def covers(self, wanted: Known) -> bool:
        """Nothing of ``wanted`` is missing."""
        return all(getattr(self, name) >= getattr(wanted, name) for name in self.__struct_fields__)


@dataclass(frozen=True)
class Answer:
    """What became of one request; ``error`` is empty for one that was answered.

    ``cached`` tokens of ``prompt``, by tier in ``tiers``; ``known``: what the index thought was
    held of it for this tenant; ``planned``: what the proxy meant to do.
    """

    status: int
    error: str = ""
    path: str = ""
    prompt: int = 0
    cached: int = 0
    tiers: Mapping[str, int] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    planned: str = ""
    body: bytes = b""

    @property
    def unforeseen(self) -> bool:
        """Decode had nearly all of it, which nobody could know: somebody else's."""
        return self.planned == "prefill" and self.path == "decode-only"


class Asker:
    """Many tasks may use one. ``model``: what is asked for unless a request says otherwise.

    ``operator``: where the index is asked.
    """

    def __init__(self, client: Client, model: str, operator: Endpoint) -> None:
        self._client = client
        self.model = model
        self._operator = operator
        self._patience = _KNOWN_SECONDS

    async def post(
        self,
        tenant: TestTenant,
        path: str,
        fields: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Of one token, greedy, unless ``fields`` say otherwise. Raises RequestFailed."""
        endpoint = _with(tenant.endpoint, headers)
        content = msgspec.json.encode(self._body(fields))
        reply = await self._client.ask(endpoint, "POST", path, content)
        return whole(reply.status, reply.headers, reply.body)

    async def stream(self, tenant: TestTenant, path: str, fields: Mapping[str, Any]) -> Answer:
        """As ``post``, streamed."""
        return streamed(await self.timed(tenant, path, fields))

    async def timed(self, tenant: TestTenant, path: str, fields: Mapping[str, Any]) -> Timeline:
        """A stream, and when its tokens came."""
        body = self._body(fields)
        return await self._client.stream(tenant.endpoint, body, time.monotonic(), path=path)

    async def known(self, tenant: TestTenant, fields: Mapping[str, Any]) -> Known:
        """What the index has of a request's prompt for ``tenant``; nothing is computed for it.

        Raises RequestFailed.
        """
        route = "chat" if "messages" in fields else "completions"
        path = f"/kvferry/explain/{quote(tenant.name)}/{route}"
        return known(await self._client.post(self._operator, path, self._body(fields)))

    async def until_known(
        self, tenant: TestTenant, fields: Mapping[str, Any], wanted: Known
    ) -> bool:
        """Whether the index comes to know as much as is ``wanted``, within some seconds.

        Where it once did not, it is waited for less from then on.
        """
        deadline = time.monotonic() + self._patience
        while not (await self.known(tenant, fields)).covers(wanted):
            if time.monotonic() > deadline:
                self._patience = _DOUBTED_SECONDS
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    async def flush(self, tenant: TestTenant) -> Mapping[str, Any]:
        """What the operator is told of it. Raises RequestFailed."""
        return await self._client.post(self._operator, f"/admin/tenants/{quote(tenant.name)}/flush")

    async def epoch(self, tenant: TestTenant) -> int:
        """How often the tenant's cache was flushed. Raises RequestFailed."""
        told = await self._client.get(self._operator, "/admin/tenants")
        return next(int(one["epoch"]) for one in told["tenants"] if one["name"] == tenant.name)

    async def models(self, tenant: TestTenant) -> list[str]:
        """What is served. Raises RequestFailed."""
        told = await self._client.get(tenant.endpoint, "/v1/models")
        return [str(card["id"]) for card in told.get("data", ())]

    def _body(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.model, "max_tokens": 1, "temperature": 0, **fields}


def whole(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """An answer that was not streamed."""
    if status != 200:
        shown = body[:_SHOWN].decode(errors="replace")
        return Answer(status, f"status {status}: {shown}", body=body)
    try:
        usage = msgspec.json.decode(body, type=dict[str, Any]).get("usage") or {}
    except msgspec.MsgspecError:
        return Answer(status, "no JSON object", body=body)
    told = headers.get(CACHED_HEADER, "").split(",")
    tiers = dict(part.strip().split("=") for part in told if part)
    return _told(headers, usage, {name: int(count) for name, count in tiers.items()}, body)


def streamed(timeline: Timeline) -> Answer:
    """An answer that was."""
    if timeline.error:
        return Answer(timeline.status, timeline.error)
    return _told(timeline.headers, timeline.usage, timeline.trailer.get("cached") or {}, b"")


def _told(
    headers: Mapping[str, str], usage: Mapping[str, Any], tiers: Mapping[str, int], body: bytes
) -> Answer:
    plan = msgspec.json.decode(headers.get(PLAN_HEADER, "{}"), type=dict[str, Any])
    return Answer(
        200,
        path=headers.get(PATH_HEADER, ""),
        prompt=usage.get("prompt_tokens") or 0,
        cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        tiers={tier: tiers.get(tier, 0) for tier in TIERS},
        known=known(plan),
        planned=str(plan.get("plan", "")),
        body=body,
    )


def known(plan: Mapping[str, Any]) -> Known:
    """What a proxy's explanation says is held."""
    prefill, decode = plan.get("prefill") or (), plan.get("decode") or ()
    return Known(
        max((one["gpu"] for one in prefill), default=0),
        max((one["dram"] for one in prefill), default=0),
        max((one["gpu"] for one in decode), default=0),
    )


async def answered(asking: Awaitable[Answer]) -> Answer:
    """Awaits an answer; one that does not come is an error like any other."""
    try:
        return await asking
    except RequestFailed as failure:
        return Answer(0, str(failure))


def _with(endpoint: Endpoint, headers: Mapping[str, str] | None) -> Endpoint:
    return replace(endpoint, headers={**endpoint.headers, **headers}) if headers else endpoint
