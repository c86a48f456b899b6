"""``kvferry bench predict``: does a request find and take what the proxy said it would?"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import environment
from bench.client import Client
from bench.commands import outcome
from bench.launchers.kvferry import Kvferry, Shape
from bench.launchers.system import Setting
from bench.load.errors import BadLoad
from bench.noise import CpuWatch
from bench.prediction import report
from bench.prediction.asking import Asked, Asking
from bench.prediction.load import mixed
from bench.result import CommandResult

EXAMPLE = "kvferry bench predict --requests 500 --rate 0.8 --json predict.json"
REQUEST_SECONDS = 600.0

TENANTS = ("red", "green", "blue", "grey")
MOST_TOKENS = 4096
"""Of a request."""


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("--requests", type=int, default=report.MEANT, metavar="N")
    parser.add_argument(
        "--rate",
        type=float,
        default=0.8,
        metavar="N",
        help="requests per second; the workers should be able to do more (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of requests and times (%(default)s)")
    parser.add_argument(
        "--kv-gib",
        type=float,
        default=0.5,
        metavar="N",
        help="of each engine: little, so that caches lose what they held, as with many users "
        "(%(default)s)",
    )
    parser.add_argument(
        "--dram-gib", type=float, default=1.0, metavar="N", help="likewise (%(default)s)"
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=environment.default_model(),
        metavar="FOLDER",
        help="what is served (%(default)s)",
    )
    parser.add_argument(
        "--first-port", type=int, default=18400, help="of those its servers take (%(default)s)"
    )
    parser.add_argument("--logs", type=Path, help="keep the cluster's logs in this folder")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def run(options: argparse.Namespace) -> int:
    """0: every bound kept; 1: one was not, or could not be judged."""
    if options.requests < 1 or not min(options.rate, options.kv_gib, options.dram_gib) > 0:
        raise BadLoad("--requests is 1 at least, --rate, --kv-gib and --dram-gib are above 0")
    folder = outcome.ready_folder("predict", options.out, options.json)
    described = environment.describe()
    scratch = Path(tempfile.mkdtemp(prefix="predict-"))
    try:
        found, others = asyncio.run(_measured(options, scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    judged = report.verdict(found, others)
    result = CommandResult(
        command="predict",
        verdict=judged,
        metrics=report.metrics(found),
        detail=report.detail(found),
        settings={
            "requests": options.requests,
            "rate": options.rate,
            "seed": options.seed,
            "kv_gib": options.kv_gib,
            "dram_gib": options.dram_gib,
            "model": options.model.name,
        },
        environment=described,
    )
    subtitle = f"{len(found)} requests, {options.rate:g} per second, {environment.cpu_model()}"
    document = report.document(found, subtitle, judged)
    return outcome.deliver_document(result, document, folder, options.json)


def _shape(options: argparse.Namespace) -> Shape:
    sections = {
        "prefill": {"kv_gib": options.kv_gib},
        "decode": {"kv_gib": options.kv_gib},
        "dram": {"gib": options.dram_gib, "port": 0, "http_port": 0},
    }
    lines = []
    for name, fields in sections.items():
        lines += [f"[{name}]", *(f"{field} = {value}" for field, value in fields.items())]
    return Shape(TENANTS, "\n".join(lines), MOST_TOKENS)


async def _measured(options: argparse.Namespace, scratch: Path) -> tuple[Sequence[Asked], float]:
    """Every request, and the cores on which others computed meanwhile. Raises BenchError."""
    logs = options.logs or scratch / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        model=options.model.resolve(),
        dtype=environment.fast_dtype(),
        compiled=False,
        environ=os.environ,
        logs=logs,
        scratch=scratch,
        python=sys.executable,
        first_port=options.first_port,
    )
    async with Client(REQUEST_SECONDS) as client:
        cluster = Kvferry(setting, client, _shape(options))
        outcome.say("starting a cluster")
        try:
            await cluster.start()
            watch = CpuWatch(cluster.children())
            endpoints = [cluster.explained(tenant) for tenant in TENANTS]
            wanted = mixed(options.requests, len(endpoints), options.rate, options.seed)
            found = await Asking(client, endpoints, str(options.seed)).run(wanted, outcome.say)
            return found, watch.others()
        finally:
            await cluster.stop()
