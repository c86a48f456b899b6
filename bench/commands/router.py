"""``kvferry bench router``: what the proxy costs a request, beside another router."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import uvloop

from bench import environment
from bench.commands import outcome
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS
from bench.result import CommandResult
from bench.routing import report
from bench.routing.measuring import measure
from bench.routing.rendering import FILES
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
    for name, default in asdict(Amounts()).items():
        parser.add_argument(
            f"--{name}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{_HELP[name]} (%(default)s)",
        )
    parser.add_argument(
        "--model",
        type=Path,
        default=environment.default_model(),
        metavar="FOLDER",
        help="whose tokenizer the workers have (%(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not, or could not be judged."""
    amounts = Amounts(**{name: getattr(options, name) for name in _HELP})
    _check(amounts, options.model)
    folder = options.out or outcome.folder_for("router")
    outcome.require_folder(folder)
    if options.json is not None:
        outcome.require_folder(options.json.parent)
    described = environment.describe()
    taken = uvloop.run(measure(amounts, options.model.resolve(), outcome.say))
    judged = report.judgements(taken)
    found = report.verdict(judged, amounts, taken)
    result = CommandResult(
        command="router",
        verdict=found,
        metrics=report.metrics(judged, taken),
        detail=report.detail(taken),
        settings={**asdict(amounts), "model": options.model.name},
        environment=described,
    )
    peer = f", {taken.peer}" if taken.peer else ""
    subtitle = f"rounds: {amounts.rounds}, {environment.cpu_model()}{peer}"
    document = report.document(judged, taken, subtitle, found)
    return outcome.deliver_document(result, document, folder, options.json)


def _check(amounts: Amounts, model: Path) -> None:
    """Raises BadLoad."""
    if min(amounts.rounds, amounts.requests, amounts.novel, amounts.concurrency) < 1:
        raise BadLoad("--rounds, --requests, --novel and --concurrency are 1 at least")
    if not 0 < amounts.seconds <= 4:
        raise BadLoad("--seconds are above 0 and at most 4: a worker unheard of for 5 is given up")
    if amounts.workers < 2 or amounts.many < 0 or amounts.workers % 2 or amounts.many % 2:
        raise BadLoad("--workers and --many are even: half of them prefill")
    if amounts.small < 100 or amounts.long < 1000:
        raise BadLoad("--small is 100 bytes at least, --long 1000")
    for name in FILES:
        if not (model / name).is_file():
            raise BadLoad(f"{model} has no {name}: run `make install`, or name another --model")
