"""The deterministic part: all rows, one after the other, and what they come to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from bench.audit.asking import Asker
from bench.audit.deployment import Deployment
from bench.audit.deterministic import caches, scopes
from bench.audit.deterministic.scene import Scene, Sizes
from bench.audit.findings import Finding, Part
from bench.audit.restarting import Restarter
from bench.client import Client
from bench.errors import RequestFailed

ROWS: dict[str, Callable[[Scene], Awaitable[Finding]]] = {
    "index": scopes.index,
    "GPU on prefill": caches.on_prefill,
    "GPU on decode": caches.on_decode,
    "GPU on decode, alone": caches.on_decode_alone,
    "chat, streamed": caches.chat_stream,
    "client's salt": scopes.client_salts,
    "sub-scope": scopes.sub_scopes,
    "LoRA": scopes.adapters,
    "no-store": scopes.no_store,
    "flush": scopes.flushed,
    "DRAM": caches.in_dram,
    "after worker restart": caches.after_restart,
}
"""By name, in the order in which they are made: what takes long last."""


def scene_of(
    deployment: Deployment,
    client: Client,
    asker: Asker,
    budget: float,
    restarter: Restarter | None,
) -> Scene:
    """Where the rows are made. See Scene."""
    config = deployment.config
    sizes = Sizes(config.model.block_size, config.dram.chunk_tokens)
    return Scene(deployment, client, asker, sizes, budget, deployment.stranger, restarter)


async def audited(scene: Scene, say: Callable[[str], None]) -> Part:
    """All rows, with every other tenant as the stranger."""
    findings, strangers = [], scene.deployment.tenants[1:]
    for stranger in strangers:
        for name, row in ROWS.items():
            try:
                finding = await row(replace(scene, stranger=stranger))
            except RequestFailed as failure:
                finding = Finding(name=name, verdict="invalid", why=str(failure))
            if len(strangers) > 1:
                finding = msgspec.structs.replace(finding, name=f"{name}, {stranger.name}")
            say(f"{finding.name}: {finding.verdict}")
            findings.append(finding)
    return Part(name="deterministic", findings=findings, metrics=metrics(findings))


def metrics(findings: list[Finding]) -> dict[str, float]:
    """Sums over all rows."""
    names = {
        "cross_tenant_cached_tokens": "foreign",
        "cross_tenant_index_tokens": "indexed",
        "cross_tenant_requests": "probes",
        "same_tenant_hits": "hits",
        "same_tenant_controls": "controls",
    }
    return {
        name: float(sum(finding.figures.get(figure, 0) for finding in findings))
        for name, figure in names.items()
    }
