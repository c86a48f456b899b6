"""``kvferry bench restart``: how soon a proxy that was killed steers as well as before."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import uvloop

from bench import environment
from bench.commands import amounts, outcome
from bench.load.errors import BadLoad
from bench.result import CommandResult
from bench.routing import restart_report
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
    amounts.add(parser, asdict(RestartAmounts()), _HELP)


def run(options: argparse.Namespace) -> int:
    """0: the bound was kept; 1: it was not, or hits did not depend on steering."""
    asked = RestartAmounts(**{name: getattr(options, name) for name in _HELP})
    _check(asked, options.model)
    folder = outcome.ready_folder("restart", options.out, options.json)
    described = environment.describe()
    taken = uvloop.run(measure(asked, options.model.resolve(), outcome.say))
    judged = restart_report.judgement(taken, asked)
    found = restart_report.verdict(judged, taken)
    result = CommandResult(
        command="restart",
        verdict=found,
        metrics=restart_report.metrics(judged, taken, asked),
        detail=restart_report.detail(taken, asked),
        settings={**asdict(asked), "model": options.model.name},
        environment=described,
    )
    subtitle = (
        f"rounds: {asked.rounds}, workers: {asked.workers}, "
        f"clients: {asked.clients}, {environment.cpu_model()}"
    )
    document = restart_report.document(judged, taken, asked, subtitle, found)
    return outcome.deliver_document(result, document, folder, options.json)


def _check(asked: RestartAmounts, model: Path) -> None:
    """Raises BadLoad."""
    for name, value in asdict(asked).items():
        if name != "seed" and value <= 0:
            raise BadLoad(f"--{name.replace('_', '-')} is above 0")
    if asked.workers % 2:
        raise BadLoad("--workers is even: half of them prefill")
    if asked.clients > asked.conversations * asked.workers // 2:
        raise BadLoad("--clients are as many as there are conversations at most")
    if min(asked.before, asked.after) < 2 * asked.window:
        raise BadLoad("--before and --after are two windows at least")
    amounts.check_model(model)
