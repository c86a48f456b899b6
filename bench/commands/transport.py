"""``kvferry bench transport``: how fast KV moves between two processes, and what the machine
allows."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import msgspec

from bench import environment
from bench.commands import outcome
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS
from bench.result import CommandResult
from bench.transport import report
from bench.transport.case import BLOCK_BYTES, bytes_of, told_bytes
from bench.transport.contender import SCHEMES
from bench.transport.figures import Taken, judge, row
from bench.transport.goals import goals
from bench.transport.measuring import measure
from bench.transport.plan import Plan

EXAMPLE = "kvferry bench transport --transport shm --max-bytes 64MiB --json transport.json"


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument(
        "--transport",
        choices=SCHEMES,
        action="append",
        help="of ours, this one alone; may be repeated (default: all)",
    )
    parser.add_argument(
        "--max-bytes",
        default="1GiB",
        metavar="SIZE",
        help="of the largest transfer; about five times as much memory is used (%(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=12,
        metavar="N",
        help=f"an interval wants {FEWEST_PAIRS} at least (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order (%(default)s)")
    parser.add_argument(
        "--bind",
        action="store_true",
        help="our two processes to a core each (kvferry's threads leave it, raw sockets cannot)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not, or could not be judged."""
    plan = plan_of(options)
    folder = outcome.ready_folder("transport", options.out, options.json)
    taken = asyncio.run(measure(plan, outcome.say))
    judgements = [
        judge(goal, taken.seconds, taken.missing) for goal in goals(plan.schemes, plan.sizes)
    ]
    rows = [row(figure, rounds) for figure, rounds in taken.seconds.items()]
    found = report.verdict(judgements, taken)
    result = CommandResult(
        command="transport",
        verdict=found,
        metrics=report.metrics(judgements),
        detail=report.detail(judgements, rows, taken),
        settings=msgspec.to_builtins(plan),
        environment=environment.describe(),
    )
    document = report.document(judgements, rows, _subtitle(plan, taken), found)
    return outcome.deliver_document(result, document, folder, options.json)


def plan_of(options: argparse.Namespace) -> Plan:
    """What was asked for. Raises BadLoad."""
    try:
        largest = bytes_of(options.max_bytes)
    except ValueError:
        raise BadLoad(f"--max-bytes is a size such as 64MiB, not {options.max_bytes}") from None
    if largest < BLOCK_BYTES:
        raise BadLoad(f"--max-bytes is one block of {told_bytes(BLOCK_BYTES)} at least")
    if options.rounds < 1:
        raise BadLoad("--rounds is 1 at least")
    schemes = tuple(scheme for scheme in SCHEMES if scheme in (options.transport or SCHEMES))
    return Plan(
        schemes=schemes,
        rounds=options.rounds,
        largest=largest,
        seed=options.seed,
        bound=options.bind,
    )


def _subtitle(plan: Plan, taken: Taken) -> str:
    versions = "".join(f", {name} {version}" for name, version in taken.versions.items())
    return (
        f"blocks of {told_bytes(BLOCK_BYTES)} up to {told_bytes(plan.largest)}, rounds: "
        f"{plan.rounds}, {environment.cpu_model()}{versions}"
    )
