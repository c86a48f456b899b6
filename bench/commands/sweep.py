"""``kvferry bench sweep``: the highest rate that keeps an SLO."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass

import msgspec

from bench import environment
from bench.commands import options as shared
from bench.commands import outcome
from bench.commands.run import watched
from bench.driving.fleet import Fleet, LoadFailed, Watch
from bench.driving.run import RunPlan
from bench.driving.watching import SaturationStop
from bench.load import workload
from bench.load.errors import BadLoad
from bench.measures.search import RateSearch
from bench.reporting.document import Document, Limit, Lines, Section, Series, Table
from bench.result import CommandResult, RunResult, Slo, Verdict

EXAMPLE = (
    "kvferry bench sweep http://127.0.0.1:8000 --slo ttft=2000,tpot=100 "
    "--seconds 30 --prompt 400 --output 16"
)


@dataclass(frozen=True)
class Step:
    """One rate tried. ``kept``: whether enough requests kept the SLO."""

    rate: float
    result: RunResult
    saturated: bool
    kept: bool


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("url", help="the server: http://host:port")
    shared.add_target(parser)
    shared.add_load(parser)
    shared.add_run(parser)
    group = parser.add_argument_group("search")
    group.add_argument(
        "--attainment", type=float, default=0.99, help="share of requests that keep the SLO (0.99)"
    )
    group.add_argument("--precision", type=float, default=0.05, help="of the rate (0.05)")
    group.add_argument("--tries", type=int, default=16, metavar="N", help="at most (16)")


def run(options: argparse.Namespace) -> int:
    """See Command."""
    if options.slo is None:
        raise BadLoad("a sweep searches for what an SLO allows: give --slo")
    if options.users is not None or options.batch is not None or options.mix is not None:
        raise BadLoad("a sweep varies an open-loop rate: leave out --users, --batch and --mix")
    return asyncio.run(_sweep(options))


async def _sweep(options: argparse.Namespace) -> int:
    target = await shared.target_of(options, options.url)
    asked = shared.workload_of(options)
    # A rate at which two requests fall into the time is the lowest that tells anything.
    least = 2 / asked.seconds if asked.seconds else 0.0
    search = RateSearch(asked.rate, options.precision, options.tries, least)
    folder = options.out or outcome.folder_for("sweep")
    steps: list[Step] = []
    settings: dict[str, object] = {}
    async with Fleet(options.processes) as fleet:
        while (rate := search.rate()) is not None:
            # Another seed for every rate: a fluke of one schedule must not decide them all.
            changed = msgspec.structs.replace(asked, rate=rate, seed=asked.seed + len(steps))
            load = {**msgspec.to_builtins(asked), "attainment": options.attainment}
            plan = shared.plan_of(options, target, workload.build(changed), load)
            settings = plan.settings()
            step = await _step(plan, fleet, rate, options.attainment)
            if fleet.stopped and not step.saturated:
                break  # Ctrl-C: what has been tried is told
            fleet.resume()
            search.note(rate, step.kept)
            steps.append(step)
            sys.stderr.write(f"{_told(step)}\n")
    if not steps:
        raise LoadFailed("it was stopped before one rate had been tried")
    result = _result(steps, search, settings)
    return outcome.deliver_document(result, _document(result, steps), folder, options.json)


async def _step(plan: RunPlan, fleet: Fleet, rate: float, attainment: float) -> Step:
    guards: list[SaturationStop] = []

    def guarded(watch: Watch) -> Watch:
        guards.append(SaturationStop(watch, fleet.stop))
        return guards[0].watch

    result, _ = await watched(plan, fleet, guarded)
    saturated = guards[0].saturated
    reached = result.metrics.get("slo_attainment", 0.0)
    return Step(rate, result, saturated, reached >= attainment and not saturated)


def _told(step: Step) -> str:
    why = "keeps it" if step.kept else "saturated" if step.saturated else "does not"
    return f"{step.rate:.3g} req/s: {step.result.metrics.get('slo_attainment', 0):.1%}, {why}"


def _result(steps: list[Step], search: RateSearch, settings: dict[str, object]) -> CommandResult:
    best = max((step for step in steps if step.kept), key=lambda step: step.rate, default=None)
    metrics = {"max_rate": search.kept, "tries": float(len(steps))}
    if best is None:
        verdict = Verdict(valid=False, sentence="INVALID: no rate that was tried keeps the SLO.")
    else:
        for name in ("goodput", "p99_ttft_ms", "p99_tpot_ms", "input_throughput"):
            if name in best.result.metrics:
                metrics[name] = best.result.metrics[name]
        sentence = f"VALID: up to {search.kept:.3g} requests per second keep the SLO"
        beyond = "" if search.broken < float("inf") else "; no rate tried was too high"
        verdict = Verdict(valid=True, sentence=f"{sentence}{beyond}.")
        if doubts := _doubts(steps, search):
            told = f"INVALID: {sentence.removeprefix('VALID: ')}, but {'; '.join(doubts)}."
            verdict = Verdict(valid=False, sentence=told, reasons=doubts)
    return CommandResult(
        command="sweep",
        verdict=verdict,
        metrics=metrics,
        detail={"steps": [_row(step) for step in sorted(steps, key=lambda step: step.rate)]},
        settings=settings,
        environment=environment.describe(),
    )


def _doubts(steps: list[Step], search: RateSearch) -> tuple[str, ...]:
    """What is wrong with the two runs that decide: the highest rate that kept the SLO, and the
    lowest that did not. Saturation is the server's; a late client is not."""
    deciding = [step for step in steps if step.rate in (search.kept, search.broken)]
    return tuple(
        f"at {step.rate:.3g} per second {reason}"
        for step in deciding
        for reason in step.result.verdict.reasons
        if not step.saturated
    )


def _row(step: Step) -> dict[str, object]:
    return {
        "rate": step.rate,
        "kept": step.kept,
        "saturated": step.saturated,
        "verdict": step.result.verdict.sentence,
        "metrics": dict(step.result.metrics),
    }


def _document(result: CommandResult, steps: list[Step]) -> Document:
    ordered = sorted(steps, key=lambda step: step.rate)
    slo = ordered[0].result.slo or Slo()
    rows = [
        [
            step.rate,
            step.result.metrics.get("slo_attainment"),
            step.result.metrics.get("goodput"),
            step.result.metrics.get("p50_ttft_ms"),
            step.result.metrics.get("p99_ttft_ms"),
            step.result.metrics.get("p50_tpot_ms"),
            "yes" if step.kept else "saturated" if step.saturated else "no",
        ]
        for step in ordered
    ]
    columns = ["req/s", "within SLO", "goodput/s", "TTFT p50", "TTFT p99", "TPOT p50", "kept"]
    plots = [_plot(ordered, "ttft", slo.ttft_ms), _plot(ordered, "tpot", slo.tpot_ms)]
    return Document(
        title="Rate sweep",
        subtitle=f"SLO {slo.name}",
        verdict=result.verdict,
        sections=[
            Section("Rates tried", [Table(columns, rows, note="Latencies in milliseconds.")]),
            Section("Latency over rate", plots, page_only=True),
        ],
    )


def _plot(ordered: list[Step], name: str, limit: float | None) -> Lines:
    def series(rank: str) -> Series:
        points = [
            (step.rate, value)
            for step in ordered
            if (value := step.result.metrics.get(f"{rank}_{name}_ms")) is not None
        ]
        return Series(rank, [x for x, _ in points], [y for _, y in points])

    return Lines(
        title=f"{name.upper()} over rate",
        series=[series("p50"), series("p90"), series("p99")],
        x_label="requests per second",
        y_label=f"{name.upper()}, ms",
        limit=None if limit is None else Limit(limit, "SLO"),
    )
