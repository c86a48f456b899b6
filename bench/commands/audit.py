"""``kvferry audit``: are tenants apart, and is nothing of theirs kept? Evidence, from outside."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from bench import environment
from bench.audit import deployment as deployments
from bench.audit import report
from bench.audit.asking import Asker
from bench.audit.deployment import Deployment, ready
from bench.audit.deterministic import part as deterministic
from bench.audit.errors import CannotAudit
from bench.audit.findings import Part
from bench.audit.refusals import part as refusals
from bench.audit.restarting import Restarter
from bench.audit.timing import part as timing
from bench.audit.volatile import part as volatile
from bench.client import Client
from bench.commands import outcome
from bench.result import CommandResult

EXAMPLE = "kvferry audit --key kvf-… --key kvf-… --json out.json --html out.html"
REQUEST_SECONDS = 120.0
SHORT_EMPTYING_SECONDS = 150.0
FULL_EMPTYING_SECONDS = 600.0

PARTS = ("deterministic", "statistical", "volatile", "transport")


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("--config", type=Path, required=True, help="the deployment's TOML file")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        help="a test tenant's API key; two tenants' at least, the others look for the first one's "
        "prompts. Others on this host can see a command line: --keys-file is private",
    )
    parser.add_argument("--keys-file", type=Path, metavar="FILE", help="one API key for each line")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument(
        "--full", action="store_true", help="up to an hour, so that times can be called equal"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the trials' order (%(default)s)")
    parser.add_argument(
        "--restart-workers",
        action="store_true",
        help="kill this host's engines (kill -9); their supervisors start them anew",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result, for a program")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the report as one page")


def run(options: argparse.Namespace) -> int:
    """0: nothing was found, and every control was; 1: not so. Raises CannotAudit."""
    deployment = deployments.opened(options.config, _keys(options))
    if options.restart_workers and not deployment.local:
        raise CannotAudit("--restart-workers: not all of this cluster's workers run on this host")
    for file in (options.json, options.html):
        if file is not None:
            outcome.require_file(file)
    described = environment.describe()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was planted is taken away
    parts = asyncio.run(_audited(deployment, options))
    judged = report.verdict(parts, full=options.full)
    result = CommandResult(
        command="audit",
        verdict=judged,
        metrics=report.metrics(parts),
        detail=report.detail(parts),
        settings={
            "only": options.only or "",
            "full": options.full,
            "seed": options.seed,
            "restart_workers": options.restart_workers,
            "tenants": [tenant.name for tenant in deployment.tenants],
        },
        environment=described,
    )
    subtitle = f"{deployment.config.model.name} at {deployment.base}, {described['date']}"
    return outcome.print_document(
        result, report.document(parts, subtitle, judged), options.html, options.json
    )


def _keys(options: argparse.Namespace) -> list[str]:
    if options.keys_file is None:
        return list(options.key)
    try:
        return [*options.key, *options.keys_file.read_text(encoding="utf-8").split()]
    except (OSError, UnicodeDecodeError) as error:
        raise CannotAudit(f"cannot read {options.keys_file}: {error}") from None


async def _audited(deployment: Deployment, options: argparse.Namespace) -> list[Part]:
    """The parts that were asked for, one after the other: each wants the deployment to itself."""
    full, parts = options.full, []
    async with Client(REQUEST_SECONDS) as client:
        await ready(deployment, client)
        asker = Asker(client, deployment.config.model.name, deployment.operator)
        restarter = Restarter(deployment, client) if options.restart_workers else None
        if options.only in (None, "deterministic"):
            budget = FULL_EMPTYING_SECONDS if full else SHORT_EMPTYING_SECONDS
            scene = deterministic.scene_of(deployment, client, asker, budget, restarter)
            parts.append(await deterministic.audited(scene, outcome.say))
        if options.only in (None, "statistical"):
            parts.append(
                await timing.audited(deployment, asker, outcome.say, full=full, seed=options.seed)
            )
        if options.only in (None, "volatile"):
            parts.append(
                await volatile.audited(
                    deployment, client, asker, outcome.say, full=full, restarter=restarter
                )
            )
        if options.only in (None, "transport"):
            parts.append(await refusals.audited(deployment, client, asker, outcome.say))
        for tenant in deployment.tenants:
            await asker.flush(tenant)
    return parts
