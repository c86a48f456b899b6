"""``kvferry bench isolation``: what it costs that tenants are kept apart."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import uvloop

from bench import environment
from bench.commands import amounts, outcome
from bench.isolation import report
from bench.isolation.caches import Hits
from bench.isolation.proxies import measure
from bench.isolation.sessions import sessions
from bench.isolation.settings import Amounts
from bench.load import traces
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS
from bench.result import CommandResult
from bench.simulation.prompts import Prompt, prompts

EXAMPLE = "kvferry bench isolation --trace mooncake_conversation.jsonl --json isolation.json"

_HELP = {
    "rounds": f"an interval wants {FEWEST_PAIRS} at least",
    "turns": "bursts of a round, through either proxy with each kind of prompt",
    "seconds": "of one burst",
    "concurrency": "clients at once in a burst",
    "workers": "behind either proxy, half of them for prefill",
    "small": "bytes of a short prompt",
    "long": "bytes of a long one",
    "replayed": "turns of conversations that are made up where there is no --trace",
    "blocks": "of 512 tokens, in a cache",
    "seed": "of prompts and order",
}


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    amounts.add(parser, asdict(Amounts()), _HELP)
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="Mooncake's, for the caches to be tried with"
    )


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not, or could not be judged."""
    asked = Amounts(**{name: getattr(options, name) for name in _HELP})
    _check(asked, options.model)
    folder = outcome.ready_folder("isolation", options.out, options.json)
    made_up = options.trace is None
    trace = sessions(asked.replayed, asked.seed) if made_up else traces.read(options.trace)
    replayed = prompts(trace, 1)
    described = environment.describe()
    taken = uvloop.run(measure(asked, options.model.resolve(), outcome.say))
    found = _hits(replayed, asked.blocks)
    judged = report.judgements(taken, found)
    verdict = report.verdict(judged, asked, taken)
    result = CommandResult(
        command="isolation",
        verdict=verdict,
        metrics=report.metrics(judged, taken, found),
        detail=report.detail(taken, found),
        settings={
            **asdict(asked),
            "model": options.model.name,
            "trace": "made up" if made_up else options.trace.name,
            "prompts": len(replayed),
        },
        environment=described,
    )
    subtitle = (
        f"rounds: {asked.rounds}, {environment.cpu_model()}; {len(replayed)} prompts of "
        f"{result.settings['trace']}, caches of {asked.blocks} blocks"
    )
    document = report.document(judged, taken, found, subtitle, verdict)
    return outcome.deliver_document(result, document, folder, options.json)


def _hits(replayed: Sequence[Prompt], blocks: int) -> list[Hits]:
    """Of both tiers. They take long to load, and are not needed before."""
    os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from bench.isolation.dram import DRAM
    from bench.isolation.engine import ENGINE

    found = []
    for tier in (ENGINE, DRAM):
        outcome.say(f"{tier.name}: {len(replayed)} prompts")
        found.append(tier.hits(replayed, blocks))
    return found


def _check(asked: Amounts, model: Path) -> None:
    """Raises BadLoad."""
    if min(asked.rounds, asked.turns, asked.concurrency, asked.replayed, asked.blocks) < 1:
        raise BadLoad("--rounds, --turns, --concurrency, --replayed and --blocks are 1 at least")
    if not 0 < asked.seconds <= 60:
        raise BadLoad("--seconds are above 0 and at most 60")
    if asked.workers < 2 or asked.workers % 2:
        raise BadLoad("--workers is even: half of them prefill")
    if asked.small < 100 or asked.long < 1000:
        raise BadLoad("--small is 100 bytes at least, --long 1000")
    amounts.check_model(model)
