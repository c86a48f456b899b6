"""``python -m bench.selftest.probe JOB``: the harness's own way of sending, in a process bound to
one core. JOB is a file; beside it comes what every request told, as a list of Probed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from bench.client import Client, Timeline
from bench.driving.driver import Driver, TargetServer
from bench.driving.quiet import no_collections
from bench.driving.target import Target
from bench.load.schedule import Planned
from bench.load.workload import Workload, build
from bench.records import Record

STUB_TRAILER = "kvferry_stub"
_HEAD_START_SECONDS = 0.3


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Put ``workload`` on ``base``, after ``warm`` requests that open the connections."""

    base: str
    workload: Workload
    warm: int


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """One request; seconds from the load's begin. ``true_ttft``: as the stub tells it."""

    intended: float
    sent: float
    first_token: float
    finished: float
    true_ttft: float
    error: str = ""


class _Watched(TargetServer):
    """Keeps what the records leave out: the stub's own times."""

    def __init__(self, client: Client, target: Target) -> None:
        super().__init__(client, target)
        self.timelines: list[Timeline] = []

    async def send(
        self, planned: Planned, body: bytes, intended: float, keep_text: bool
    ) -> Timeline:
        timeline = await super().send(planned, body, intended, keep_text)
        self.timelines.append(timeline)
        return timeline


async def probe(job: Job) -> list[Probed]:
    """All requests of the job, in order of their ends."""
    target = Target(base=job.base, model="stub", api="completions", timeout_seconds=60.0)
    records: list[Record] = []
    async with Client(target.timeout_seconds, trailer=STUB_TRAILER) as client:
        if job.warm:
            warming = build(
                msgspec.structs.replace(
                    job.workload,
                    pacing="users",
                    users=job.warm,
                    requests=2 * job.warm,
                    seconds=None,
                )
            )
            await Driver(TargetServer(client, target), warming, "warm", records.append).run(0.0)
        server = _Watched(client, target)
        driver = Driver(server, build(job.workload), "probe", records.append)
        with no_collections():
            begin = time.monotonic() + _HEAD_START_SECONDS
            await driver.run(begin)
    return _probed(server.timelines, begin)


def _probed(timelines: Sequence[Timeline], begin: float) -> list[Probed]:
    return [
        Probed(
            intended=one.intended - begin,
            sent=one.sent - begin,
            first_token=(one.tokens[0] if one.tokens else one.finished) - begin,
            finished=one.finished - begin,
            true_ttft=one.trailer.get("first_token", 0.0) - one.trailer.get("received", 0.0),
            error=one.error,
        )
        for one in timelines
    ]


def main(job_file: Path) -> None:
    """Reads the job, does it, writes the outcome beside it."""
    job = msgspec.json.decode(job_file.read_bytes(), type=Job)
    told = uvloop.run(probe(job))
    outcome(job_file).write_bytes(msgspec.json.encode(told))


def outcome(job_file: Path) -> Path:
    """Where the outcome of a job comes to lie."""
    return job_file.with_suffix(".outcome.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
