"""HTTP doors: the proxy's for clients, its other one for operators, and every worker's."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from bench.audit import prompts
from bench.audit.asking import CHAT, COMPLETIONS, PLAN_HEADER, Asker
from bench.audit.deployment import Deployment, TestTenant, Worker
from bench.audit.findings import Finding
from bench.audit.refusals.attempt import Attempt, not_tried, row
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from kvstore import salts
from kvstore.credentials import TOKEN_HEADER

_TURNED_AWAY = frozenset({401, 403})
_NOT_HERE = frozenset({401, 403, 404, 405})
_WORKER_PATHS = (
    ("POST", COMPLETIONS),
    ("POST", CHAT),
    ("POST", f"{COMPLETIONS}/render"),
    ("POST", "/tokenize"),
    ("POST", "/kvferry/tenancy"),
    ("POST", f"/kvferry/abandon/{bytes(16).hex()}"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/kvferry/text-rules"),
)


class Doors:
    """Knocks on them."""

    def __init__(self, deployment: Deployment, client: Client, asker: Asker) -> None:
        self._deployment = deployment
        self._client = client
        self._asker = asker

    async def clients(self) -> Finding:
        """API keys; and that operators' routes are not where clients come in."""
        base, body = self._deployment.base, self._body()
        key = f"kvf-{secrets.token_urlsafe(32)}"
        basic = base64.b64encode(f"key:{key}".encode()).decode()
        credentials = {
            "no key": {},
            "a key of nobody's": {"authorization": f"Bearer {key}"},
            "an empty key": {"authorization": "Bearer "},
            "another scheme": {"authorization": f"Basic {basic}"},
            "the operator's token alone": {TOKEN_HEADER: self._deployment.token},
        }
        attempts = [
            await self._try(f"{name}, {path}", Endpoint(base, shown), "POST", path, body)
            for name, shown in credentials.items()
            for path in (COMPLETIONS, CHAT)
        ]
        attempts.append(await self._try("no key, models", Endpoint(base), "GET", "/v1/models"))
        attempts += await self._operators_from_outside()
        attempts.append(await self._plan_for_clients())
        return row("proxy, clients", attempts, await self._served(self._deployment.owner))

    async def _operators_from_outside(self) -> list[Attempt]:
        tenant = self._deployment.owner
        routes = (
            ("POST", f"/admin/tenants/{tenant.name}/flush"),
            ("GET", "/admin/tenants"),
            ("POST", f"/kvferry/explain/{tenant.name}/completions"),
            ("GET", "/metrics"),
        )
        key = {"authorization": tenant.endpoint.headers["authorization"]}
        return [
            await self._try(
                f"a client's key, {path}",
                Endpoint(self._deployment.base, key),
                *(method, path, b"{}"),
                refusals=_NOT_HERE,
            )
            for method, path in routes
        ]

    async def _plan_for_clients(self) -> Attempt:
        """A token that is none gives no operator's view."""
        name, tenant = "a client with a wrong token is told a plan", self._deployment.owner
        forged = replace(
            tenant.endpoint,
            headers={**tenant.endpoint.headers, TOKEN_HEADER: secrets.token_hex(32)},
        )
        try:
            reply = await self._client.ask(forged, "POST", COMPLETIONS, self._body())
        except RequestFailed as failure:
            return Attempt(name, refused=False, told=str(failure), answered=False)
        return Attempt(name, PLAN_HEADER not in reply.headers)

    async def operators(self) -> Finding:
        """The operators' door, as far as one can come to it."""
        door = self._deployment.operator
        key = self._deployment.owner.endpoint.headers["authorization"]
        credentials: dict[str, dict[str, str]] = {
            "no token": {},
            "a wrong token": {TOKEN_HEADER: secrets.token_hex(32)},
            "an empty token": {TOKEN_HEADER: ""},
            "a client's key": {"authorization": key},
        }
        name = self._deployment.owner.name
        attempts = [
            await self._try(f"{shown}, {path}", replace(door, headers=headers), method, path, b"{}")
            for shown, headers in credentials.items()
            for method, path in (
                ("GET", "/admin/tenants"),
                ("POST", f"/admin/tenants/{name}/flush"),
                ("POST", f"/kvferry/explain/{name}/completions"),
                ("GET", "/metrics"),
            )
        ]
        control = await self._let_in(door, "GET", "/admin/tenants")
        return row("proxy, operators", attempts, control)

    async def worker(self, worker: Worker) -> Finding:
        """A worker serves proxies only."""
        key = self._deployment.owner.endpoint.headers["authorization"]
        credentials: dict[str, dict[str, str]] = {
            "no token": {},
            "a wrong token": {TOKEN_HEADER: secrets.token_hex(32)},
            "a client's key": {"authorization": key, TOKEN_HEADER: key.rpartition(" ")[2]},
            "the token as a bearer's": {"authorization": f"Bearer {self._deployment.token}"},
        }
        attempts = [
            await self._try(
                f"{shown}, {path}",
                replace(worker.endpoint, headers=headers),
                *(method, path, self._body()),
            )
            for shown, headers in credentials.items()
            for method, path in _WORKER_PATHS
        ]
        control = await self._let_in(worker.shown(self._deployment.token), "GET", "/v1/models")
        return row(f"{worker.name}, HTTP", attempts, control)

    async def flushed_epochs(self, epoch: int) -> Finding:
        """Legs of the owner's epochs before this one, from a proxy that has the token."""
        name, tenant = "legs of a flushed epoch", self._deployment.owner
        if epoch == 0:
            why = f"{tenant.name} has not been flushed yet; the deterministic part does it"
            return not_tried(name, why)
        key, attempts = self._deployment.credentials.salt_key(), []
        for worker in self._deployment.workers:
            for old in {0, epoch - 1}:
                salt = salts.salt(key, salts.Scope(tenant.name, old))
                owner = salts.owner(salt)
                assert owner is not None
                shown = worker.shown(self._deployment.token)
                headers = {**shown.headers, salts.OWNER_HEADER: owner.claim}
                attempts.append(
                    await self._try(
                        f"epoch {old} at {worker.name}",
                        replace(shown, headers=headers),
                        *("POST", COMPLETIONS, self._body(salt)),
                        refusals=frozenset({409}),
                    )
                )
        return row(name, attempts)

    async def _try(
        self,
        name: str,
        endpoint: Endpoint,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        refusals: frozenset[int] = _TURNED_AWAY,
    ) -> Attempt:
        try:
            reply = await self._client.ask(endpoint, method, path, body)
        except RequestFailed as failure:
            return Attempt(name, refused=False, told=f"no answer ({failure})", answered=False)
        return Attempt(name, reply.status in refusals, f"status {reply.status}")

    async def _let_in(self, endpoint: Endpoint, method: str, path: str) -> str:
        attempt = await self._try("", endpoint, method, path, refusals=frozenset({200}))
        return "" if attempt.refused else f"with the token {path} is not served: {attempt.told}"

    async def _served(self, tenant: TestTenant) -> str:
        return await self._let_in(tenant.endpoint, "GET", "/v1/models")

    def _body(self, salt: str = "") -> bytes:
        fields: Mapping[str, object] = {
            "model": self._asker.model,
            "prompt": prompts.fresh(8),
            "messages": [{"role": "user", "content": "audit"}],
            "max_tokens": 1,
        }
        return msgspec.json.encode({**fields, "cache_salt": salt} if salt else fields)
