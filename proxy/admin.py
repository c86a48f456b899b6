"""What operators may see and do, by listeners of their own and with the cluster's token."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from kvstore.cluster import Tenant
from kvstore.credentials import TOKEN_HEADER
from kvstore.errors import ApiError
from kvstore.messages import ROLES, Announce, Role, Standing, Wiped
from kvstore.tenant_feed import TenantFeed
from proxy import faults
from proxy.app import Api, json_reply, refusal
from proxy.tenants import Tenants

CONFIRM_SECONDS = 2.0
"""How long workers may take to say that nothing flushed is used any more; it takes milliseconds."""

WIPE_SECONDS = 10.0
"""How long they may take to say that it has been overwritten."""

_BEARER = "Bearer "

Live = Callable[[Role], Iterable[Announce]]


class Said(Protocol):
    """What workers have said of tenants, and when there is more (``kvstore.feed``)."""

    @property
    def tenants(self) -> TenantFeed:
        """What is known by now."""
        ...

    async def news(self) -> None:
        """Returns when a worker has said something."""
        ...


class Admin:
    """The operators' routes. ``dram``: whether prefill workers load from a DRAM tier."""

    def __init__(self, api: Api, tenants: Tenants, said: Said, live: Live, *, dram: bool) -> None:
        self._api = api
        self._tenants = tenants
        self._said = said
        self._live = live
        self._dram = dram

    def require_operator(self, request: Request) -> None:
        """Raises ApiError (401) unless the caller shows the cluster's token."""
        bearer = request.headers.get("authorization", "")
        shown = request.headers.get(TOKEN_HEADER) or bearer.removeprefix(_BEARER)
        if not self._tenants.keyring.operator(shown):
            raise faults.no_operator()

    def tenants(self) -> Response:
        """Everybody's settings, requests under way, and bytes in every worker's memory."""
        running = self._tenants.running
        told = [self._told(tenant, running[tenant.name]) for tenant in self._tenants.known]
        return json_reply({"tenants": told})

    async def flush(self, name: str) -> Response:
        """Makes all that was cached for a tenant unreachable, and awaits its being overwritten."""
        if self._tenants.keyring.named(name) is None:
            raise faults.unknown_tenant(name)
        # What workers know of earlier flushes comes before they do: without it an epoch could be
        # chosen that is not above theirs, and what is kept would be found again.
        if not self._workers() and not await self._until(CONFIRM_SECONDS, self._workers):
            raise faults.overloaded("No worker has been heard of: nothing was flushed.")
        began = time.monotonic()
        standing = self._tenants.flush(name)
        if standing is None:
            raise faults.unknown_tenant(name)
        workers = self._workers()
        await self._until(CONFIRM_SECONDS, lambda: workers.keys() <= self._confirmed(standing))
        unreachable = time.monotonic() - began
        places = {(worker, "gpu") for worker in workers}
        if self._dram:
            places |= {(worker, "dram") for worker, role in workers.items() if role == "prefill"}
        await self._until(WIPE_SECONDS, lambda: places <= self._wiped(standing).keys())
        wiped = self._wiped(standing)
        late = sorted(f"{worker}/{tier}" for worker, tier in places - wiped.keys())
        return json_reply(
            {
                "tenant": name,
                "epoch": standing.epoch,
                "unreachable_ms": round(unreachable * 1000, 3),
                "unconfirmed": sorted(workers.keys() - self._confirmed(standing)),
                "overwritten_ms": round((time.monotonic() - began) * 1000, 3),
                "overwritten": [_overwritten(one) for one in wiped.values()],
                "not_overwritten_yet": late,
            }
        )

    def _workers(self) -> dict[str, Role]:
        return {worker.worker: worker.role for role in ROLES for worker in self._live(role)}

    async def _until(self, seconds: float, holds: Callable[[], object]) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    await self._said.news()
        except TimeoutError:
            return bool(holds())
        return True

    def _confirmed(self, standing: Standing) -> set[str]:
        return self._said.tenants.confirmed(standing.tag, standing.epoch)

    def _wiped(self, standing: Standing) -> dict[tuple[str, str], Wiped]:
        found = self._said.tenants.wiped(standing.tag, standing.epoch)
        return {(one.worker, one.tier): one for one in found}

    def _told(self, tenant: Tenant, running: int) -> Mapping[str, Any]:
        tag = self._tenants.tag(tenant.name)
        memory = [
            {"worker": worker, "tier": tier, "kept": held.kept, "used": held.used}
            for (worker, tier), known in sorted(self._said.tenants.memory.items())
            if (held := known.holdings.get(tag)) is not None
        ]
        return {
            "name": tenant.name,
            "tag": tag,
            "epoch": tenant.epoch,
            "keys": len(tenant.keys_sha256),
            "cache_floor": tenant.cache_floor,
            "cache_limit": tenant.cache_limit,
            "max_requests": tenant.max_requests,
            "running": running,
            "memory": memory,
        }


def _overwritten(one: Wiped) -> Mapping[str, Any]:
    return {"worker": one.worker, "tier": one.tier, "bytes": one.size, "seconds": one.seconds}


def create_admin(admin: Admin, api: Api) -> FastAPI:
    """The operators' application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/admin/tenants")
    async def tenants(request: Request) -> Response:
        admin.require_operator(request)
        return admin.tenants()

    @app.post("/admin/tenants/{tenant}/flush")
    async def flush(tenant: str, request: Request) -> Response:
        admin.require_operator(request)
        return await admin.flush(tenant)

    @app.post("/kvferry/explain/{tenant}/{route}")
    async def explain(tenant: str, route: str, request: Request) -> Response:
        admin.require_operator(request)
        return await api.explain(tenant, route, request)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        admin.require_operator(request)
        return api.metrics()

    @app.exception_handler(ApiError)
    async def failed(_request: Request, error: ApiError) -> Response:
        return refusal(error, secrets.token_hex(16))

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        fault = ApiError(error.status_code, f"{error.detail}.")
        return refusal(fault, secrets.token_hex(16))

    return app


class Doors:
    """One server behind two doors: what comes in by the operators' is for ``admin``.

    That is a Unix socket, of which a server knows no address, or ``port``, where one is set.
    """

    def __init__(self, public: ASGIApp, admin: ASGIApp, port: int) -> None:
        self._public = public
        self._admin = admin
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._public
        if scope["type"] != "lifespan":
            server = scope.get("server")
            if server is None or server[1] is None or (self._port and server[1] == self._port):
                app = self._admin
        await app(scope, receive, send)
