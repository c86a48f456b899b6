"""``kvferry bench selftest``: is this client to be trusted?"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import environment
from bench.commands import outcome
from bench.environment import default_model
from bench.headline.bounds import Bound, Verdict, verdict
from bench.measures.bound import in_words
from bench.reporting.document import Cell, Document, Section, Table
from bench.result import CommandResult
from bench.result import Verdict as ResultVerdict
from bench.selftest.calibration import CalibrationSettings, measure_calibration
from bench.selftest.client import measure_client
from bench.selftest.peers import guidellm_program, measure_peers
from bench.selftest.settings import ClientSettings, Measured, PeerSettings

EXAMPLE = "kvferry bench selftest --json selftest.json"

BOUNDS = (
    Bound("lag_p99_ms", "client", "at most", 2.0),
    Bound("bias_p50_ms", "client", "at most", 0.5),
    Bound("bias_p99_ms", "client", "at most", 3.0),
    Bound("rate_vs_vllm_bench", "peers", "at least", 1.5),
    Bound("rate_vs_guidellm", "peers", "at least", 3.0),
    Bound("false_alarms", "calibration", "at most", 0.08),
    Bound("detected", "calibration", "at least", 0.9),
)
PARTS = ("client", "peers", "calibration")


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="this part alone; may be repeated"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=default_model(),
        metavar="FOLDER",
        help="a model's folder, for the other clients (default: the one `make install` prepares)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def run(options: argparse.Namespace) -> int:
    """See Command."""
    measured = asyncio.run(_measured(options))
    metrics = {name: value for one in measured.values() for name, value in one.metrics.items()}
    verdicts = [verdict(bound, metrics) for bound in BOUNDS if bound.part in measured]
    short = [one.metric for one in verdicts if one.outcome != "PASS"]
    result = CommandResult(
        command="selftest",
        verdict=ResultVerdict(
            valid=not short,
            sentence=in_words(short),
        ),
        metrics=metrics,
        settings={name: dict(one.settings) for name, one in measured.items()},
        environment=environment.describe(),
    )
    return outcome.deliver_document(result, _document(result, verdicts), options.out, options.json)


async def _measured(options: argparse.Namespace) -> Mapping[str, Measured]:
    wanted = options.only or PARTS
    found = {}
    if "peers" in wanted:  # first: a peer that is missing says so at once
        peers = PeerSettings(tokenizer=options.tokenizer, guidellm=guidellm_program())
        found["peers"] = await measure_peers(peers, outcome.say)
    if "client" in wanted:
        found["client"] = await measure_client(ClientSettings(), outcome.say)
    if "calibration" in wanted:
        found["calibration"] = await measure_calibration(CalibrationSettings(), outcome.say)
    return found


def _document(result: CommandResult, verdicts: Sequence[Verdict]) -> Document:
    rows: list[list[Cell]] = [
        [one.metric, one.value, f"{one.kind} {one.limit:g}", one.outcome]
        for one in verdicts
        if one.limit is not None
    ]
    bounded = {one.metric for one in verdicts}
    others: list[list[Cell]] = [
        [name, value] for name, value in result.metrics.items() if name not in bounded
    ]
    return Document(
        title="Selftest",
        subtitle="this client against a stub whose delays are known, and other clients beside it",
        verdict=result.verdict,
        sections=[
            Section("Bounds", [Table(["metric", "value", "bound", ""], rows)]),
            Section("Also measured", [Table(["metric", "value"], others)]),
        ],
    )
