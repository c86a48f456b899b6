"""The deterministic part through a real proxy, with stand-ins for engines: clean where all is in
order, and red for every protection that is taken away.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.audit.asking import Asker
from bench.audit.deployment import Deployment, TestTenant
from bench.audit.deterministic.part import audited, scene_of
from bench.audit.findings import Part
from bench.client import Client, Endpoint
from kvstore import salts
from kvstore.blockhash import block_chain
from kvstore.cluster import Adapter, ClusterConfig, Dram, Model, Proxy, Tenant
from kvstore.credentials import TOKEN_HEADER, Credentials
from proxy import chains
from proxy.catalogue import Served
from proxy.pipeline import Pipeline
from tests.support.proxy_fakes import BLOCK, CHUNK, KEYS, MODEL, SALT_KEY, TOKEN, Stage, stage
from tests.support.salted_engines import ADAPTER, Engines

pytestmark = pytest.mark.timeout(120)

Take = Callable[[Engines], None]


class StageCredentials(Credentials):
    def salt_key(self) -> bytes:
        return SALT_KEY

    def http_token(self) -> str:
        return TOKEN


def deployment(s: Stage, folder: Path) -> Deployment:
    port = int(s.admin_url.rpartition(":")[2])
    config = ClusterConfig(
        run_dir=str(folder),
        model=Model(name=MODEL, block_size=BLOCK),
        dram=Dram(chunk_tokens=CHUNK),
        proxy=Proxy(port=int(s.url.rpartition(":")[2]), admin_port=port),
        adapters=(Adapter(name=ADAPTER.name, path=ADAPTER.path),),
        tenants=tuple(
            Tenant(name=name, keys_sha256=(hashlib.sha256(key.encode()).hexdigest(),))
            for name, key in KEYS.items()
        ),
    )
    tenants = [
        TestTenant(name, Endpoint(s.url, {"authorization": f"Bearer {key}", TOKEN_HEADER: TOKEN}))
        for name, key in KEYS.items()
    ]
    return Deployment(config, StageCredentials(b"", {}), tenants)


def audit(tmp_path: Path, take: Take = lambda _engines: None) -> Part:
    """The deterministic part of an audit of a proxy and its engines, changed as ``take`` does."""

    async def scenario() -> Part:
        folder = tmp_path / "run"
        folder.mkdir()
        async with stage(tmp_path) as s:
            take(Engines(s))
            deployed = deployment(s, folder)
            async with Client(20.0) as client:
                asker = Asker(client, MODEL, deployed.operator)
                scene = scene_of(deployed, client, asker, 30.0, None)
                return await audited(scene, lambda _line: None)

    return asyncio.run(asyncio.wait_for(scenario(), 100))


def verdicts(part: Part) -> dict[str, str]:
    return {row.name: row.verdict for row in part.findings}


def test_tenants_that_are_apart_pass_every_row(tmp_path: Path) -> None:
    part = audit(tmp_path)
    found = verdicts(part)
    assert found.pop("after worker restart") == "not tried"
    assert set(found.values()) == {"pass"}, "\n".join(
        f"{row.name}: {row.why}" for row in part.findings
    )
    assert part.metrics["cross_tenant_cached_tokens"] == 0
    assert part.metrics["cross_tenant_index_tokens"] == 0
    assert part.metrics["same_tenant_hits"] == part.metrics["same_tenant_controls"] >= 15
    assert msgspec.json.encode(part)


def test_a_salt_dropped_in_engines_is_caught(tmp_path: Path) -> None:
    def take(engines: Engines) -> None:
        engines.engine_salt = False

    part = audit(tmp_path, take)
    for row in ("GPU on prefill", "GPU on decode", "GPU on decode, alone", "chat, streamed"):
        assert verdicts(part)[row] == "fail", row
    assert part.metrics["cross_tenant_cached_tokens"] > 0


def test_a_salt_dropped_at_the_dram_tier_is_caught(tmp_path: Path) -> None:
    def take(engines: Engines) -> None:
        engines.dram_salt = False

    part = audit(tmp_path, take)
    assert verdicts(part)["DRAM"] == "fail"
    assert verdicts(part)["index"] == "pass"
    assert part.metrics["cross_tenant_cached_tokens"] > 0


def _unsalted(tokens: Any, size: int, _salt: str, *more: Any, **named: Any) -> list[bytes]:
    return block_chain(tokens, size, "", *more, **named)


@pytest.mark.parametrize("told", [True, False])
def test_an_index_without_salts_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Whether workers tell the names with it, so that nobody finds anything, or without."""
    monkeypatch.setattr(chains, "block_chain", _unsalted)
    monkeypatch.setattr(chains, "_key", lambda *key: ("", *key[2:]))

    def take(engines: Engines) -> None:
        engines.told_salt = told

    part = audit(tmp_path, take)
    assert verdicts(part)["index"] == ("invalid" if told else "fail")
    assert part.metrics["cross_tenant_cached_tokens"] == 0
    assert (part.metrics["cross_tenant_index_tokens"] > 0) == (not told)


def test_an_adapter_left_out_of_the_salt_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Served, "within", lambda _served, scope: scope)
    part = audit(tmp_path)
    bad = {row: verdict for row, verdict in verdicts(part).items() if verdict == "fail"}
    assert set(bad) == {"LoRA"}


@pytest.mark.parametrize("known", [True, False])
def test_a_clients_own_salt_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Passed through whatever it is, or only where it looks like one of the cluster's."""
    derived = Pipeline._salt
    given: list[str] = []

    def passed(self: Pipeline, tenant: Tenant, request: Any, served: Served) -> str:
        salt = given[-1] if given else ""
        if salt and (not known or salts.owner(salt) is not None):
            return salt
        return derived(self, tenant, request, served)

    async def job(self: Pipeline, call: Any) -> Any:
        given.append(msgspec.json.decode(call.body).get("cache_salt") or "")
        return await kept(self, call)

    kept = Pipeline._job
    monkeypatch.setattr(Pipeline, "_salt", passed)
    monkeypatch.setattr(Pipeline, "_job", job)
    part = audit(tmp_path)
    assert verdicts(part)["client's salt"] == "fail"
    assert verdicts(part)["GPU on prefill"] == "pass"


def test_requests_that_are_kept_against_their_wish_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(self: Pipeline, tenant: Tenant, request: Any, served: Served) -> str:
        scope = salts.Scope(tenant.name, tenant.epoch, request.sub_scope)
        return salts.salt(SALT_KEY, served.within(scope))

    monkeypatch.setattr(Pipeline, "_salt", kept)
    assert verdicts(audit(tmp_path))["no-store"] == "fail"
