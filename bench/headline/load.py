"""A load put on a system of this benchmark by the harness's own driver."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from bench.client import Timeline
from bench.driving.driver import Driver
from bench.errors import RequestFailed
from bench.launchers.system import MODEL_NAME, System
from bench.load.schedule import Planned, Schedule
from bench.load.workload import Workload, build
from bench.records import Record

HEAD_START_SECONDS = 0.5


class SystemServer:
    """A system as the driver sees it; requests take its lanes in turn."""

    def __init__(self, system: System) -> None:
        self._system = system

    def body(self, talk: Sequence[str], output_tokens: int) -> bytes:
        """See Server. Whether it streams is the system's business."""
        asked = {
            "model": MODEL_NAME,
            "prompt": "".join(talk),
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return msgspec.json.encode(asked)

    async def send(
        self, planned: Planned, body: bytes, intended: float, keep_text: bool
    ) -> Timeline:
        """See Server. Turns of a conversation are not needed here, so ``keep_text`` is not."""
        return await self._system.stream(msgspec.json.decode(body), intended, planned.number)


async def loaded(system: System, workload: Workload, salt: str) -> list[Record]:
    """The measured requests' records. Raises RequestFailed if the caches cannot be prepared."""
    schedule = build(workload)
    if schedule.before:
        primed = await _driven(system, schedule.ahead(), salt)
        if failed := [one for one in primed if one.error]:
            raise RequestFailed(f"{system.name}: priming failed: {failed[0].error}")
    return await _driven(system, schedule, salt)


async def _driven(system: System, schedule: Schedule, salt: str) -> list[Record]:
    records: list[Record] = []
    driver = Driver(SystemServer(system), schedule, salt, records.append)
    await driver.run(time.monotonic() + HEAD_START_SECONDS)
    return records
