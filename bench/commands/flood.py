"""``kvferry bench flood``: what a tenant that floods the caches takes from one that does not."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from bench import environment
from bench.commands import amounts, outcome
from bench.flooding import report
from bench.flooding.load import sizes
from bench.flooding.measuring import Taken, measure
from bench.flooding.model import TOKEN_BYTES, write_model
from bench.flooding.settings import Amounts, Within
from bench.launchers.system import Setting
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS
from bench.result import CommandResult

EXAMPLE = "kvferry bench flood --json flood.json"

_HELP = {
    "rounds": f"an interval wants {FEWEST_PAIRS} at least",
    "seconds": "of a slice of an arm",
    "lead": "seconds before it that are not counted",
    "utilization": "of the prefill worker, while the noisy tenant floods",
    "document": "tokens of a prompt that are found again",
    "question": "tokens of it that never are",
    "output": "tokens of an answer",
    "kv_gib": "of each engine's cache",
    "control": "rounds without quotas; 0: none",
    "seed": "of times and documents",
}


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    usual = asdict(Amounts())
    amounts.add(parser, {name: usual[name] for name in _HELP}, _HELP)
    parser.add_argument(
        "--within",
        choices=get_args(Within),
        default=usual["within"],
        help="the tier whose quota working sets fit; dram: engines do not hold them (%(default)s)",
    )
    parser.add_argument(
        "--first-port", type=int, default=18600, help="of those its servers take (%(default)s)"
    )
    parser.add_argument("--logs", type=Path, help="keep the cluster's logs in this folder")


def run(options: argparse.Namespace) -> int:
    """0: both bounds kept; 1: one was not, or could not be judged."""
    asked = Amounts(**{name: getattr(options, name) for name in (*_HELP, "within")})
    _check(asked, options.model)
    folder = outcome.ready_folder("flood", options.out, options.json)
    described = environment.describe()
    scratch = Path(tempfile.mkdtemp(prefix="flood-"))
    try:
        taken = _measured(options, asked, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    judged = report.judgements(taken)
    found = report.verdict(judged, asked, taken)
    result = CommandResult(
        command="flood",
        verdict=found,
        metrics=report.metrics(judged, taken),
        detail=report.detail(taken),
        settings={**asdict(asked), "dram_gib": asked.dram_gib, "model": "made on the spot"},
        environment=described,
    )
    subtitle = (
        f"rounds: {asked.rounds}, {taken.rate:.2f} requests per second of each tenant, "
        f"{environment.cpu_model()}"
    )
    document = report.document(judged, taken, subtitle, found)
    return outcome.deliver_document(result, document, folder, options.json)


def _measured(options: argparse.Namespace, asked: Amounts, scratch: Path) -> Taken:
    logs = options.logs or scratch / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        model=write_model(scratch / "model", options.model.resolve()),
        dtype="bfloat16",
        compiled=False,
        environ=os.environ,
        logs=logs,
        scratch=scratch,
        python=sys.executable,
        first_port=options.first_port,
    )
    return asyncio.run(measure(asked, setting, outcome.say))


def _check(asked: Amounts, model: Path) -> None:
    """Raises BadLoad."""
    for name, value in asdict(asked).items():
        if name not in {"control", "seed", "within"} and value <= 0:
            raise BadLoad(f"--{name.replace('_', '-')} is above 0")
    if asked.control < 0 or not asked.utilization < 1:
        raise BadLoad("--control is 0 at least, --utilization below 1")
    if sizes(asked, TOKEN_BYTES).inside < 2:
        raise BadLoad("--kv-gib has to hold more documents")
    amounts.check_model(model)
