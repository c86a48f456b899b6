"""One run from its plan to its result: prepare the caches, put the load on, sum up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bench import counters
from bench.client import Client, Endpoint
from bench.driving.fleet import Fleet, LoadFailed, Watch
from bench.driving.target import Target
from bench.errors import RequestFailed
from bench.load.schedule import Schedule
from bench.measures.summary import Asked, summary
from bench.records import Record
from bench.result import RunResult, Slo
from bench.statistics import median

ASK_SECONDS = 20.0


@dataclass(frozen=True)
class RunPlan:
    """Everything a run depends on. ``salt`` keeps its prompts apart from every other run's;
    ``block_size``: tokens that the server caches at a time; ``load``: the settings that made the
    schedule."""

    target: Target
    schedule: Schedule
    salt: str
    slo: Slo | None = None
    block_size: int = 16
    load: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What the result tells of it; keys are counted, never told."""
        target = msgspec.to_builtins(self.target)
        own = {"keys": len(self.target.keys), "salt": self.salt, "block_size": self.block_size}
        return {**target, **own, **self.load}


async def carry_out(plan: RunPlan, fleet: Fleet, watch: Watch) -> tuple[RunResult, list[Record]]:
    """Runs ``plan``. Raises LoadFailed where the caches could not be prepared."""
    await _prepare(plan, fleet)
    before = await _counted(plan.target)
    records = await fleet.run(plan.target, plan.schedule, plan.salt, watch)
    after = await _counted(plan.target)
    asked = Asked(
        open_loop=plan.schedule.pacing == "open",
        hit_ratio=plan.schedule.intended_hit_ratio(plan.block_size, template_tokens(records)),
        slo=plan.slo,
        server_hits=_hit_ratio(before, after),
        stopped=fleet.stopped,
        loop_late=tuple(fleet.lateness),
    )
    result = summary(records, asked)
    return msgspec.structs.replace(result, schedule_sha256=plan.schedule.digest()), records


def template_tokens(records: Sequence[Record]) -> int:
    """How many tokens the server's template adds to a prompt, by its own counts: the median."""
    added = [
        record.prompt_tokens - record.planned_prompt_tokens
        for record in records
        if record.prompt_tokens and not record.turn
    ]
    return max(0, round(median(added))) if added else 0


async def served_model(base: str, key: str) -> str:
    """The first model a server tells of. Raises LoadFailed."""
    endpoint = Endpoint(base, {"authorization": f"Bearer {key}"} if key else {})
    async with Client(ASK_SECONDS) as client:
        try:
            told = await client.get(endpoint, "/v1/models")
        except RequestFailed as error:
            raise LoadFailed(f"{base} does not tell its models ({error}); give --model") from None
    models = told.get("data") or []
    if not models:
        raise LoadFailed(f"{base} serves no model")
    return str(models[0]["id"])


async def _prepare(plan: RunPlan, fleet: Fleet) -> None:
    """Warm and prime, one request after the other."""
    ahead = plan.schedule.before
    if not ahead:
        return
    records = await fleet.run(plan.target, plan.schedule.ahead(), plan.salt, lambda *_: None)
    if fleet.stopped:
        return
    if len(records) < len(ahead):
        raise LoadFailed(f"{len(ahead) - len(records)} requests that prepare the caches got lost")
    if failed := [record for record in records if not record.ok]:
        raise LoadFailed(f"a request that prepares the caches failed: {failed[0].error}")


async def _counted(target: Target) -> counters.CacheCounters | None:
    """The server's cache counters; None where it is no vLLM engine."""
    async with Client(ASK_SECONDS) as client:
        try:
            return counters.parse(await client.text(target.endpoint(0), "/metrics"))
        except (RequestFailed, ValueError):
            return None


def _hit_ratio(
    before: counters.CacheCounters | None, after: counters.CacheCounters | None
) -> float | None:
    if before is None or after is None:
        return None
    counted = after.since(before)
    if not counted.local_queries:
        return None
    return (counted.local_hits + counted.external_hits) / counted.local_queries
