"""``kvferry bench calibrate``: how long a server's prefills take, for ``bench simulate``."""

from __future__ import annotations

import argparse
import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path

from bench import environment
from bench.commands import options as shared
from bench.commands import outcome
from bench.load.errors import BadLoad
from bench.reporting.document import Cell, Document, Lines, Section, Series, Table
from bench.result import CommandResult, Verdict
from bench.simulation import calibrating
from bench.simulation.fitted import Fitted, fitted
from kvstore.curves import FEWEST_SAMPLES, Sample

EXAMPLE = "kvferry bench calibrate http://127.0.0.1:8000 --longest 4096 --json engine.json"
USUAL_ERROR = 0.25
"""A curve whose median error is larger says little of the engine."""


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("url", help="the server: http://host:port; nobody else should use it")
    shared.add_target(parser)
    group = parser.add_argument_group("prompts")
    group.add_argument("--longest", type=int, default=4096, metavar="TOKENS")
    group.add_argument("--rounds", type=int, default=3, metavar="N", help="of every length")
    group.add_argument("--seed", type=int, default=0, help="of their order (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def run(options: argparse.Namespace) -> int:
    """0: a curve that fits; 1: one that does not."""
    wanted = calibrating.asked(options.longest, options.rounds, options.seed)
    if len(wanted) < FEWEST_SAMPLES:
        raise BadLoad(f"--longest {options.longest} and --rounds {options.rounds} are too few")
    folder = outcome.ready_folder("calibrate", options.out, options.json)
    samples = asyncio.run(_measured(options, wanted))
    found = fitted(samples)
    good = found.median_error <= USUAL_ERROR
    sentence = (
        f"A prefill takes {found.start_ms:.3g} ms, {found.token_us:.3g} us for each token and "
        f"{found.pair_ns:.3g} ns for each pair; the median error is {found.median_error:.1%}."
    )
    reasons = () if good else (f"the median error is above {USUAL_ERROR:.0%}",)
    verdict = Verdict(valid=good, sentence=sentence, reasons=reasons)
    result = CommandResult(
        command="calibrate",
        verdict=verdict,
        metrics=found.metrics(),
        detail={"samples": [[one.new, one.held, one.seconds] for one in samples]},
        settings={"longest": options.longest, "rounds": options.rounds, "seed": options.seed},
        environment=environment.describe(),
    )
    return outcome.deliver_document(
        result, _document(samples, found, verdict), folder, options.json
    )


async def _measured(
    options: argparse.Namespace, wanted: Sequence[calibrating.Asked]
) -> list[Sample]:
    target = await shared.target_of(options, options.url)
    return await calibrating.samples(target, wanted, secrets.token_hex(8), outcome.say)


def _document(samples: Sequence[Sample], found: Fitted, verdict: Verdict) -> Document:
    rows: list[list[Cell]] = [
        [one.new, one.held, one.seconds, found.curve.seconds(float(one.new), float(one.held))]
        for one in sorted(samples, key=lambda one: (one.new, one.held))
    ]
    points = sorted((float(one.new), one.seconds) for one in samples if not one.held)
    lengths = [length for length, _ in points]
    curves = [
        Series("measured", lengths, [seconds for _, seconds in points]),
        Series("curve", lengths, [found.curve.seconds(length, 0.0) for length in lengths]),
    ]
    return Document(
        "Calibration",
        f"{len(samples)} prompts, {environment.cpu_model()}",
        verdict,
        [
            Section(
                "Nothing held",
                [Lines("TTFT", curves, "tokens", "seconds", log_x=True)],
            ),
            Section(
                "Prompts",
                [Table(["tokens computed", "tokens held", "TTFT, s", "curve, s"], rows)],
            ),
        ],
    )
