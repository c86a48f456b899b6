"""``kvferry bench router``: what the proxy costs a request, beside another router."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import uvloop

from bench import environment
from bench.commands import amounts, outcome
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS
from bench.result import CommandResult
from bench.routing import report
from bench.routing.measuring import measure
from bench.routing.settings import Amounts

EXAMPLE = "kvferry bench router --json router.json"

_HELP = {
    "rounds": f"an interval wants {FEWEST_PAIRS} at least",
    "seconds": "of one burst",
    "requests": "one by one, for a TTFT",
    "novel": "likewise, of prompts never seen before",
    "concurrency": "clients at once in a burst",
    "workers": "behind every router, half of them for prefill",
    "many": "workers of the larger fleet; 0: none",
    "small": "bytes of a short prompt",
    "long": "bytes of a long one",
    "seed": "of prompts and order",
}


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    amounts.add(parser, asdict(Amounts()), _HELP)


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not, or could not be judged."""
    asked = Amounts(**{name: getattr(options, name) for name in _HELP})
    _check(asked, options.model)
    folder = outcome.ready_folder("router", options.out, options.json)
    described = environment.describe()
    taken = uvloop.run(measure(asked, options.model.resolve(), outcome.say))
    judged = report.judgements(taken)
    found = report.verdict(judged, asked, taken)
    result = CommandResult(
        command="router",
        verdict=found,
        metrics=report.metrics(judged, taken),
        detail=report.detail(taken),
        settings={**asdict(asked), "model": options.model.name},
        environment=described,
    )
    peer = f", {taken.peer}" if taken.peer else ""
    subtitle = f"rounds: {asked.rounds}, {environment.cpu_model()}{peer}"
    document = report.document(judged, taken, subtitle, found)
    return outcome.deliver_document(result, document, folder, options.json)


def _check(asked: Amounts, model: Path) -> None:
    """Raises BadLoad."""
    if min(asked.rounds, asked.requests, asked.novel, asked.concurrency) < 1:
        raise BadLoad("--rounds, --requests, --novel and --concurrency are 1 at least")
    if not 0 < asked.seconds <= 4:
        raise BadLoad("--seconds are above 0 and at most 4: a worker unheard of for 5 is given up")
    if asked.workers < 2 or asked.many < 0 or asked.workers % 2 or asked.many % 2:
        raise BadLoad("--workers and --many are even: half of them prefill")
    if asked.small < 100 or asked.long < 1000:
        raise BadLoad("--small is 100 bytes at least, --long 1000")
    amounts.check_model(model)
