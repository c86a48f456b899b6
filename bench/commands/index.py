"""``kvferry bench index``: what a proxy's knowledge of its workers' caches costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import environment
from bench.commands import outcome
from bench.directory import report
from bench.directory.measuring import measure
from bench.directory.world import Shape
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS
from bench.noise import CpuWatch
from bench.result import CommandResult

EXAMPLE = "kvferry bench index --entries 10000000 --json index.json"


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument(
        "--entries",
        type=int,
        default=report.LARGE,
        metavar="N",
        help="of the largest index; about 20 bytes each (%(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=24,
        metavar="N",
        help=f"an interval wants {FEWEST_PAIRS} at least (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of prompts and order (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not, or another size was asked for."""
    if options.entries < 1 or options.rounds < 1:
        raise BadLoad("--entries and --rounds are 1 at least")
    folder = outcome.ready_folder("index", options.out, options.json)
    largest = Shape(options.entries)
    shapes = [report.SMALL, report.MANY_WORKERS, report.ONE_TENANT, report.MANY_TENANTS, largest]
    watch = CpuWatch([])
    taken = measure(list(dict.fromkeys(shapes)), options.rounds, options.seed, outcome.say)
    judged = report.judgements(taken, largest)
    found = report.verdict(judged, largest, options.rounds, watch.others())
    result = CommandResult(
        command="index",
        verdict=found,
        metrics=report.metrics(judged, taken),
        detail=report.detail(taken),
        settings={"entries": options.entries, "rounds": options.rounds, "seed": options.seed},
        environment=environment.describe(),
    )
    subtitle = f"rounds: {options.rounds}, {environment.cpu_model()}"
    document = report.document(judged, taken, subtitle, found)
    return outcome.deliver_document(result, document, folder, options.json)
