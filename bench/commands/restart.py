"""``kvferry bench restart``: how soon a proxy that was killed steers as well as before."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import uvloop

from bench import environment
from bench.commands import outcome
from bench.load.errors import BadLoad
from bench.result import CommandResult
from bench.routing import restart_report
from bench.routing.rendering import FILES
from bench.routing.restarting import measure
from bench.routing.settings import RestartAmounts

EXAMPLE = "kvferry bench restart --json restart.json"

_HELP = {
    "rounds": "kills of the proxy",
    "workers": "stub workers, half of them for prefill",
    "blocks": "that each has room for, of 16 tokens",
    "clients": "in a closed loop",
    "think_ms": "that a client waits between two questions, on average",
    "conversations": "for each prefill worker",
    "turns": "of a conversation",
    "system": "characters that all conversations of a tenant begin with",
    "turn": "characters of a question",
    "warm": "seconds before the first round",
    "before": "seconds before a kill in which the hit ratio is taken",
    "after": "seconds after it, from the first worker's replay on",
    "window": "seconds of a window",
    "seed": "of texts and order",
}


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    for name, default in asdict(RestartAmounts()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
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
    """0: the bound was kept; 1: it was not, or hits did not depend on steering."""
    amounts = RestartAmounts(**{name: getattr(options, name) for name in _HELP})
    _check(amounts, options.model)
    folder = options.out or outcome.folder_for("restart")
    outcome.require_folder(folder)
    if options.json is not None:
        outcome.require_folder(options.json.parent)
    described = environment.describe()
    taken = uvloop.run(measure(amounts, options.model.resolve(), outcome.say))
    judged = restart_report.judgement(taken, amounts)
    found = restart_report.verdict(judged, taken)
    result = CommandResult(
        command="restart",
        verdict=found,
        metrics=restart_report.metrics(judged, taken, amounts),
        detail=restart_report.detail(taken, amounts),
        settings={**asdict(amounts), "model": options.model.name},
        environment=described,
    )
    subtitle = (
        f"rounds: {amounts.rounds}, workers: {amounts.workers}, "
        f"clients: {amounts.clients}, {environment.cpu_model()}"
    )
    document = restart_report.document(judged, taken, amounts, subtitle, found)
    return outcome.deliver_document(result, document, folder, options.json)


def _check(amounts: RestartAmounts, model: Path) -> None:
    """Raises BadLoad."""
    for name, value in asdict(amounts).items():
        if name != "seed" and value <= 0:
            raise BadLoad(f"--{name.replace('_', '-')} is above 0")
    if amounts.workers % 2:
        raise BadLoad("--workers is even: half of them prefill")
    if amounts.clients > amounts.conversations * amounts.workers // 2:
        raise BadLoad("--clients are as many as there are conversations at most")
    if min(amounts.before, amounts.after) < 2 * amounts.window:
        raise BadLoad("--before and --after are two windows at least")
    for name in FILES:
        if not (model / name).is_file():
            raise BadLoad(f"{model} has no {name}: run `make install`, or name another --model")
