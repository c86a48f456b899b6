"""``kvferry bench headline``: kvferry beside vLLM, vLLM's NIXL pair and vLLM with LMCache."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from bench.commands import outcome
from bench.environment import cpu_model, default_model, fast_dtype
from bench.headline import report
from bench.headline.amounts import varied
from bench.headline.bounds import Verdict
from bench.headline.measuring import FEWEST_ROUNDS, NAMES, SYSTEMS, check, measure, plan
from bench.publishing import headline as publishing
from bench.reporting.files import write_json

EXAMPLE = "kvferry bench headline --json out.json --only miss --rounds 1"


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", required=True, help="where the result goes"
    )
    parser.add_argument(
        "--only", choices=NAMES, action="append", help="run this part alone; may be repeated"
    )
    parser.add_argument(
        "--skip", choices=NAMES, action="append", default=[], help="leave this part out"
    )
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS, help="at least 3 count")
    parser.add_argument("--model", type=Path, default=default_model(), help="its directory")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default=fast_dtype(),
        help="of all systems (default: what this processor computes fast)",
    )
    parser.add_argument(
        "--compile",
        choices=("on", "off"),
        default="off",
        help="whether engines compile the model; off is kvferry's default on CPU (default: off)",
    )
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=tuple(SYSTEMS))
    parser.add_argument("--seed", default=secrets.token_hex(6), help="repeats the prompts")
    parser.add_argument(
        "--first-port", type=int, default=18300, help="of those its servers take (%(default)s)"
    )
    parser.add_argument("--logs", type=Path, help="keep the systems' logs in this folder")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="vary the workload"
    )
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="FOLDER",
        help="a clone of kvferry: keep the result there, and write README's table and plots",
    )


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not, or was not measured."""
    folder = Path(tempfile.mkdtemp(prefix="headline-"))
    try:
        amounts = varied(options.set)
        phases = plan(options)
        check(options, phases)
        outcome.say(f"seed {options.seed}, {cpu_model()}, {options.dtype}; the plan:")
        print(report.time_plan(phases, amounts), file=sys.stderr, flush=True)
        taken = asyncio.run(_interruptible(measure(options, amounts, phases, folder, outcome.say)))
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    write_json(options.json, taken)
    if options.publish is not None:
        publishing.publish(options.publish, taken)
    verdicts = [Verdict(**each) for each in taken["verdicts"]]
    print(report.table(verdicts))
    for complaint in taken["complaints"]:
        print(f"! {complaint}")
    if not taken["specified_workload"]:
        print("This was not the specified workload: the verdicts do not count.")
    return 0 if all(each.outcome in ("PASS", "told") for each in verdicts) else 1


async def _interruptible(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """``work``, cancelled by Ctrl-C or SIGTERM; no process of a system is left behind."""
    task = asyncio.ensure_future(work)
    for ending in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(ending, task.cancel)
    return await task
