"""``kvferry bench simulate``: the proxy's steering, on a trace, with engines that keep time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import environment
from bench.commands import outcome
from bench.load import traces
from bench.load.errors import BadLoad
from bench.load.traces import Traced
from bench.result import CommandResult
from bench.simulation import fitted, report
from bench.simulation.fitted import Fitted
from bench.simulation.outcome import Outcome, oracle
from bench.simulation.prompts import Prompt, prompts
from bench.simulation.replaying import OURS, POLICIES, Faults, replay
from bench.simulation.report import Replays
from bench.simulation.world import RESTART_SECONDS, Settings

EXAMPLE = "kvferry bench simulate --trace mooncake_conversation.jsonl --workers 8 --blocks 4000"


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE", help="Mooncake's")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--blocks",
        type=int,
        default=report.BLOCKS,
        metavar="B",
        help="of 512 tokens, in each worker's cache (%(default)s)",
    )
    parser.add_argument(
        "--tenants", type=int, default=1, metavar="T", help="that sessions are dealt to"
    )
    parser.add_argument(
        "--policy", choices=POLICIES, action="append", help="this one alone; may be repeated"
    )
    parser.add_argument(
        "--utilization",
        type=float,
        default=report.UTILIZATION,
        metavar="PART",
        help="of the capacity that an infinite cache would leave (%(default)s)",
    )
    parser.add_argument("--untimed", action="store_true", help="placement alone: nothing waits")
    parser.add_argument(
        "--engine",
        type=Path,
        metavar="FILE",
        help="a result of bench calibrate (default: assumed, 20,000 tokens per second)",
    )
    faults = parser.add_argument_group("faults, for kvferry's own steering")
    faults.add_argument(
        "--lost", type=float, default=0.0, metavar="PART", help="of the feeds' messages"
    )
    faults.add_argument(
        "--restart-every", type=float, metavar="SECONDS", help="one worker loses all it holds"
    )
    faults.add_argument(
        "--proxies", type=int, default=1, metavar="N", help="that requests come to in turn"
    )
    parser.add_argument("--seed", type=int, default=0, help="of engines' jitter (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not."""
    _check(options)
    folder = outcome.ready_folder("simulate", options.out, options.json)
    trace = traces.read(options.trace)
    asked = prompts(trace, options.tenants)
    engine = fitted.ASSUMED if options.engine is None else fitted.read(options.engine)
    found = _replays(options, trace, asked, engine)
    told = report.metrics(found)
    held = report.bounds(found, len(asked))
    judged = report.verdict(told, held)
    result = CommandResult(
        command="simulate",
        verdict=judged,
        metrics=told,
        detail=report.detail(found),
        settings={
            "trace": options.trace.name,
            "requests": len(asked),
            "workers": options.workers,
            "blocks": options.blocks,
            "tenants": options.tenants,
            "utilization": None if options.untimed else options.utilization,
            "engine": engine.metrics(),
            "lost": options.lost,
            "restart_every": options.restart_every,
            "proxies": options.proxies,
            "seed": options.seed,
        },
        environment=environment.describe(),
    )
    subtitle = (
        f"{options.trace.name}, {len(asked)} requests, {options.workers} workers with "
        f"{options.blocks} blocks each, tenants: {options.tenants}"
    )
    document = report.document(found, told, held, judged, subtitle)
    return outcome.deliver_document(result, document, folder, options.json)


def _check(options: argparse.Namespace) -> None:
    if min(options.workers, options.blocks, options.tenants, options.proxies) < 1:
        raise BadLoad("--workers, --blocks, --tenants and --proxies are 1 at least")
    if not 0 < options.utilization < 1:
        raise BadLoad(f"--utilization is between 0 and 1, not {options.utilization:g}")
    if not 0 <= options.lost < 1:
        raise BadLoad(f"--lost is from 0 to below 1, not {options.lost:g}")
    if options.restart_every is not None and (
        options.untimed or options.workers < 2 or options.restart_every <= RESTART_SECONDS
    ):
        raise BadLoad(
            f"--restart-every is above the {RESTART_SECONDS:g} s that one takes, of 2 workers "
            "at least, and not untimed"
        )


def _replays(
    options: argparse.Namespace, trace: Sequence[Traced], asked: Sequence[Prompt], engine: Fitted
) -> Replays:
    infinite = oracle(asked, engine.curve)
    stretch = None
    if not options.untimed:
        span = max(asked[-1].at, 1e-9)
        stretch = infinite.seconds / (options.workers * options.utilization) / span
    faults = Faults(options.lost, options.restart_every, options.proxies)
    calm = Settings(
        workers=options.workers,
        blocks=options.blocks,
        curve=engine.curve,
        spread=engine.spread,
        stretch=stretch,
        seed=options.seed,
    )
    settings = replace(calm, restart_every=options.restart_every)
    policies = tuple(dict.fromkeys(options.policy or ((OURS,) if faults else POLICIES)))
    if faults and policies != (OURS,):
        raise BadLoad(f"faults are for --policy {OURS} alone")
    outcomes: dict[str, Outcome] = {}
    for policy in policies:
        outcome.say(f"{policy}: {len(asked)} requests")
        outcomes[policy] = replay(policy, asked, settings, faults)
    undisturbed = unscoped = None
    if faults:
        outcome.say("without faults")
        undisturbed = replay(OURS, asked, calm)
    if options.tenants > 1 and OURS in policies:
        outcome.say("of a single tenant")
        unscoped = replay(OURS, prompts(trace, 1), settings, faults)
    return Replays(
        oracle=infinite,
        outcomes=outcomes,
        workers=options.workers,
        blocks=options.blocks,
        tenants=options.tenants,
        utilization=options.utilization,
        faults=faults,
        stretch=stretch,
        unscoped=unscoped,
        undisturbed=undisturbed,
    )
