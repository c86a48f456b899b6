"""Slices of both arms in turns on one cluster; beside them the same without quotas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from bench.client import Client
from bench.flooding.asking import Asking, Found
from bench.flooding.load import (
    ARMS,
    NOISY,
    QUIET,
    Arm,
    Sizes,
    filling,
    settling,
    sizes,
    slice_of,
)
from bench.flooding.model import TOKEN_BYTES
from bench.flooding.settings import FLOOR, LIMIT, Amounts, FloodFailed
from bench.launchers.kvferry import Kvferry, Shape
from bench.launchers.system import Setting
from bench.noise import CpuWatch
from bench.statistics import median

TOGETHER = "together"
"""The tenant that both are where there are no quotas."""

_REQUEST_SECONDS = 120.0
_TOLD_SECONDS = 1.5
"""After which proxies know what workers hold."""
_ALONE = 12
"""Requests that are timed one by one."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Slice:
    """What came of one, of both tenants."""

    arm: Arm
    number: int
    requests: Sequence[Found]

    def of(self, tenant: str) -> list[Found]:
        """That tenant's requests."""
        return [one for one in self.requests if one.tenant == tenant]


@dataclass
class Taken:
    """``quotas``: slices with them; ``control``: without. ``miss`` and ``hit``: seconds that a
    prefill takes alone; ``rate``: requests per second of each tenant. ``others``: cores.
    """

    many: Sizes
    miss: float = 0.0
    hit: float = 0.0
    rate: float = 0.0
    quotas: list[Slice] = field(default_factory=list)
    control: list[Slice] = field(default_factory=list)
    others: float = 0.0


async def measure(amounts: Amounts, setting: Setting, say: Say) -> Taken:
    """All slices. Raises StartFailed, FloodFailed, RequestFailed."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(_REQUEST_SECONDS))
        cluster = Kvferry(setting, client, shape(amounts))
        stack.push_async_callback(cluster.stop)
        say("starting a cluster")
        await cluster.start()
        scene = Scene(cluster, client, amounts, say)
        await scene.calibrate()
        watch = CpuWatch(cluster.children())
        await scene.with_quotas()
        await scene.without_quotas()
        scene.taken.others = watch.others()
        return scene.taken


def shape(amounts: Amounts) -> Shape:
    """The cluster: small caches, two tenants with quotas, and one that has all there is."""
    sections: Mapping[str, Mapping[str, float]] = {
        "prefill": {"kv_gib": amounts.kv_gib},
        "decode": {"kv_gib": amounts.kv_gib},
        "dram": {"gib": amounts.dram_gib, "port": 0, "http_port": 0},
    }
    lines = []
    for name, fields in sections.items():
        lines += [f"[{name}]", *(f"{key} = {value:g}" for key, value in fields.items())]
    shares = {QUIET: (FLOOR, LIMIT), NOISY: (FLOOR, LIMIT)}
    return Shape((QUIET, NOISY, TOGETHER), "\n".join(lines), shares=shares)


class Scene:
    """One cluster and the load on it."""

    def __init__(self, cluster: Kvferry, client: Client, amounts: Amounts, say: Say) -> None:
        self.taken = Taken(sizes(amounts, TOKEN_BYTES))
        self._cluster = cluster
        self._amounts = amounts
        self._say = say
        quiet, noisy, together = (cluster.asks(one) for one in (QUIET, NOISY, TOGETHER))
        salt, output = str(amounts.seed), amounts.output
        self._apart = Asking(client, {QUIET: quiet, NOISY: noisy}, salt, output)
        self._together = Asking(client, {QUIET: together, NOISY: together}, salt, output)

    async def calibrate(self) -> None:
        """What prefills take alone, and so the rate. Raises FloodFailed."""
        taken, amounts = self.taken, self._amounts
        wanted = settling(amounts, taken.many, "inside", -1)
        await self._apart.one_by_one(wanted[:2])  # of which each pays for what is done but once
        missed = await self._apart.one_by_one(wanted[2 : 2 + _ALONE])
        await asyncio.sleep(_TOLD_SECONDS)
        again = settling(amounts, taken.many, "inside", -2)
        hit = await self._apart.one_by_one(again[2 : 2 + _ALONE])
        if any(one.cached for one in missed) or not all(one.cached for one in hit):
            raise FloodFailed("not found is what was asked before, or found what was not")
        taken.miss, taken.hit = _prefill(missed), _prefill(hit)
        taken.rate = amounts.utilization / (taken.miss + taken.hit)
        self._say(
            f"a prefill takes {1e3 * taken.miss:.0f} ms, {1e3 * taken.hit:.0f} where the prompt is "
            f"found: {taken.rate:.2f} requests per second of each tenant; {taken.many}"
        )

    async def with_quotas(self) -> None:
        """All rounds; arms by turns in the order A B, B A."""
        await self._fill(self._apart)
        for number in range(self._amounts.rounds):
            for arm in ARMS if number % 2 == 0 else reversed(ARMS):
                self.taken.quotas.append(await self._slice(self._apart, arm, number))

    async def without_quotas(self) -> None:
        """The control: both are one tenant, who may have everything."""
        if self._amounts.control:
            for tenant in (QUIET, NOISY):
                await self._cluster.flush(tenant)
            await self._fill(self._together)
        for number in range(self._amounts.control):
            for arm in ARMS:
                self.taken.control.append(await self._slice(self._together, arm, number))

    async def _fill(self, asking: Asking) -> None:
        """The flood has been going on for some time."""
        wanted = filling(self._amounts, self.taken.many)
        self._say(f"{len(wanted)} documents that flood")
        await asking.one_by_one(wanted)

    async def _slice(self, asking: Asking, arm: Arm, number: int) -> Slice:
        amounts, many = self._amounts, self.taken.many
        await asking.one_by_one(settling(amounts, many, arm, number))
        await asyncio.sleep(_TOLD_SECONDS)
        wanted = slice_of(amounts, many, arm, number, self.taken.rate)
        most = amounts.lead + amounts.seconds + _REQUEST_SECONDS
        taken = Slice(arm, number, await asking.slice(wanted, most))
        quiet = taken.of(QUIET)
        cached, prompt = sum(one.cached for one in quiet), sum(one.prompt for one in quiet)
        self._say(
            f"{arm} {number + 1}: {len(quiet)} quiet requests, {cached / max(1, prompt):.3f} found"
        )
        return taken


def _prefill(some: Sequence[Found]) -> float:
    """Seconds, of the usual one."""
    return median([one.stages.get("prefill", 0.0) for one in some]) / 1000
