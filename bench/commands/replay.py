"""``kvferry bench replay``: a recorded trace as load."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from pathlib import Path

from bench.commands import options as shared
from bench.commands.run import perform
from bench.load import traces

EXAMPLE = (
    "kvferry bench replay trace.jsonl http://127.0.0.1:8000 --seconds 60 --speedup 0.5 --scale 0.05"
)


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("trace", type=Path, help="Mooncake's JSON lines or Azure's CSV")
    parser.add_argument("url", help="the server: http://host:port")
    shared.add_target(parser)
    group = parser.add_argument_group("load")
    group.add_argument("--speedup", type=float, default=1.0, help="divides the trace's times")
    group.add_argument("--scale", type=float, default=1.0, help="multiplies its lengths")
    group.add_argument("--first", type=float, default=0.0, metavar="SECONDS", help="to skip")
    group.add_argument("--seconds", type=float, help="of the trace to replay (default: all)")
    group.add_argument("--requests", type=int, metavar="N", help="at most so many")
    group.add_argument("--tenants", type=int, default=1, help="conversations are dealt to them")
    group.add_argument("--salt", help="of the prompts' text (default: a new one for every run)")
    shared.add_run(parser)


def run(options: argparse.Namespace) -> int:
    """See Command."""
    replay = traces.Replay(
        speedup=options.speedup,
        scale=options.scale,
        first=options.first,
        seconds=options.seconds,
        requests=options.requests,
        tenants=options.tenants,
    )
    schedule = traces.replayed(traces.read(options.trace), replay)
    settings = {"trace": options.trace.name, **asdict(replay)}
    return asyncio.run(perform(options, schedule, settings, "replay"))
