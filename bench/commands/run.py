"""``kvferry bench run``: one load, one result."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

from bench.commands import options as shared
from bench.commands import outcome
from bench.driving.fleet import Fleet, Watch
from bench.driving.live import Live
from bench.driving.run import RunPlan, carry_out
from bench.load.schedule import Schedule
from bench.records import Record
from bench.result import RunResult

EXAMPLE = (
    "kvferry bench run http://127.0.0.1:8000 --rate 2 --seconds 30 "
    "--prompt 400-800 --output 32 --hit-ratio 0.3"
)


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("url", help="the server: http://host:port")
    shared.add_target(parser)
    shared.add_load(parser)
    shared.add_run(parser)


def run(options: argparse.Namespace) -> int:
    """See Command."""
    schedule, settings = shared.schedule_of(options)
    return asyncio.run(perform(options, schedule, settings, "run"))


async def perform(
    options: argparse.Namespace, schedule: Schedule, settings: dict[str, Any], command: str
) -> int:
    """Puts ``schedule`` on the server of ``options`` and delivers what came of it."""
    target = await shared.target_of(options, options.url)
    plan = shared.plan_of(options, target, schedule, settings)
    folder = options.out or outcome.folder_for(command)
    outcome.require_folder(folder)
    async with Fleet(options.processes) as fleet:
        result, records = await watched(plan, fleet)
    result = outcome.described(result, command, plan.settings())
    return outcome.deliver(result, records, folder, options.json)


async def watched(
    plan: RunPlan, fleet: Fleet, guard: Callable[[Watch], Watch] = lambda watch: watch
) -> tuple[RunResult, list[Record]]:
    """A run that shows how it goes on the error stream. Ctrl-C stops the fleet, which then has
    ``stopped`` set; the result is of what there is. ``guard`` may watch as well."""
    schedule = plan.schedule
    times = [planned.at for planned in schedule.requests if planned.at is not None]
    seconds = max(times, default=0.0)
    rate = len(times) / seconds if schedule.pacing == "open" and seconds else 0.0
    live = Live(sys.stderr, len(schedule.requests), rate, seconds if rate else 0.0)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, fleet.stop)
    try:
        return await carry_out(plan, fleet, guard(live.watch))
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        live.end()
