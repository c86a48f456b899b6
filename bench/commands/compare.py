"""``kvferry bench compare``: two servers, or two folders of recorded runs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from bench import environment
from bench.commands import options as shared
from bench.commands import outcome
from bench.commands.run import watched
from bench.driving.fleet import Fleet
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS, Better, Comparison, compare
from bench.reporting.document import Cell, Document, Interval, Ratio, Section, Table
from bench.reporting.files import read_run, write_run
from bench.result import CommandResult, RunResult, Verdict

EXAMPLE = (
    "kvferry bench compare http://127.0.0.1:8000 http://127.0.0.1:8001 "
    "--rate 5 --seconds 10 --prompt 64 --output 8"
)

COMPARED: Mapping[str, Better] = {
    "p50_ttft_ms": "lower",
    "p90_ttft_ms": "lower",
    "p50_first_itl_ms": "lower",
    "p50_itl_ms": "lower",
    "p99_itl_ms": "lower",
    "p50_e2e_ms": "lower",
    "input_throughput": "higher",
    "output_throughput": "higher",
}

_ALIKE = ("api", "extra", "processes", "model", "block_size", "timeout_seconds")
"""Settings that have to be the same on both sides, besides the schedule."""

ERRORS_APART, TOKENS_APART = 0.01, 0.01
"""A server that refuses work, or ends it early, is not faster."""


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("a", help="a server, or a folder of runs that compare or run has written")
    parser.add_argument("b", help="the same kind of thing, to be compared with A")
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="of runs (10)")
    parser.add_argument(
        "--gate",
        choices=tuple(COMPARED),
        default="p50_ttft_ms",
        help="the figure that decides the exit code: 1 if B is worse (%(default)s)",
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of the interval (0.95)")
    parser.add_argument("--force", action="store_true", help="compare runs of unlike settings")
    shared.add_target(parser)
    shared.add_load(parser)
    shared.add_run(parser)


def run(options: argparse.Namespace) -> int:
    """See Command."""
    if options.pairs < FEWEST_PAIRS:
        raise BadLoad(f"an interval wants {FEWEST_PAIRS} pairs at least, not {options.pairs}")
    folder = options.out or outcome.folder_for("compare")
    if options.a.startswith("http"):
        pairs = asyncio.run(_measured(options, folder))
    else:
        pairs = recorded(Path(options.a), Path(options.b))
        if not options.force:
            _require_interleaved(pairs)
    if not options.force:
        _require_alike(pairs)
    found = comparisons(pairs, options.confidence)
    if options.gate not in found:
        raise BadLoad(f"there are not {FEWEST_PAIRS} pairs of valid runs that tell {options.gate}")
    result = _result(found, options.gate, pairs, {"a": options.a, "b": options.b})
    document = _document(result, found, pairs, options)
    code = outcome.deliver_document(result, document, folder, options.json)
    worse = found[options.gate].finding(COMPARED[options.gate]) == "worse"
    return 1 if worse else code


async def _measured(options: argparse.Namespace, folder: Path) -> list[tuple[RunResult, RunResult]]:
    """Pairs of runs, ABBA: within a pair each side is first as often as second."""
    schedule, settings = shared.schedule_of(options)
    targets = {name: await shared.target_of(options, getattr(options, name)) for name in "ab"}
    pairs = []
    async with Fleet(options.processes) as fleet:
        for number in range(options.pairs):
            taken = {}
            for name in "ab" if number % 2 == 0 else "ba":
                sys.stderr.write(f"pair {number + 1} of {options.pairs}, {name.upper()}\n")
                plan = shared.plan_of(options, targets[name], schedule, settings)
                result, records = await watched(plan, fleet)
                if fleet.stopped:
                    raise KeyboardInterrupt  # the pairs so far are in the folder
                taken[name] = outcome.described(result, "run", plan.settings())
                write_run(folder / name / f"{number:03d}", taken[name], records)
            pairs.append((taken["a"], taken["b"]))
    return pairs


def recorded(a: Path, b: Path) -> list[tuple[RunResult, RunResult]]:
    """The runs that subfolders of one name hold on both sides. Raises BadLoad, BadResult."""
    names = {}
    for folder in (a, b):
        names[folder] = {file.parent.name for file in folder.glob("*/result.json")}
        if not names[folder]:
            raise BadLoad(f"{folder} is no server (http://…) and has no runs in it")
    if alone := names[a] ^ names[b]:
        raise BadLoad(f"runs without a partner of their name: {', '.join(sorted(alone))}")
    return [(read_run(a / name)[0], read_run(b / name)[0]) for name in sorted(names[a])]


def comparisons(
    pairs: Sequence[tuple[RunResult, RunResult]], confidence: float
) -> dict[str, Comparison]:
    """Every figure that all valid pairs tell. Runs that were not valid are left out in pairs."""
    valid = [(a, b) for a, b in pairs if a.verdict.valid and b.verdict.valid]
    found = {}
    for name in COMPARED:
        values = [(a.metrics.get(name), b.metrics.get(name)) for a, b in valid]
        told = [(a, b) for a, b in values if a and b]
        if len(told) == len(valid) >= FEWEST_PAIRS:
            found[name] = compare([a for a, _ in told], [b for _, b in told], confidence)
    return found


def _require_interleaved(pairs: Sequence[tuple[RunResult, RunResult]]) -> None:
    """Every pair ended before the next began to: else the time between A and B is compared too."""
    dates = [sorted(str(one.environment.get("date")) for one in pair) for pair in pairs]
    if any(later[0] < earlier[1] for earlier, later in pairwise(dates)):
        raise BadLoad(
            "the runs of A and B were not made in turns, so what changed meanwhile would count as "
            "theirs; --force compares them nevertheless"
        )


def _require_alike(pairs: Sequence[tuple[RunResult, RunResult]]) -> None:
    for a, b in pairs:
        if a.schedule_sha256 != b.schedule_sha256:
            raise BadLoad("the runs had different schedules; --force compares them nevertheless")
        for name in _ALIKE:
            if a.settings.get(name) != b.settings.get(name):
                raise BadLoad(
                    f"the runs differ in {name}: {a.settings.get(name)} and "
                    f"{b.settings.get(name)}; --force compares them nevertheless"
                )


def _result(
    found: Mapping[str, Comparison],
    gate: str,
    pairs: Sequence[tuple[RunResult, RunResult]],
    settings: dict[str, object],
) -> CommandResult:
    metrics = {f"ratio_{name}": comparison.ratio for name, comparison in found.items()}
    metrics |= {f"ratio_{name}_low": comparison.low for name, comparison in found.items()}
    metrics |= {f"ratio_{name}_high": comparison.high for name, comparison in found.items()}
    for name, side in zip("ab", zip(*pairs, strict=True), strict=True):
        metrics[f"errors_{name}"] = errors(side)
    decided = found[gate]
    words = {"better": "B is better than A", "worse": "B is worse than A"}
    told = words.get(decided.finding(COMPARED[gate]), "no difference between A and B is found")
    sentence = (
        f"{told}: {gate} of B is {decided.ratio:.3f} of A's, "
        f"{decided.confidence:.0%} interval {decided.low:.3f} to {decided.high:.3f} "
        f"from {decided.pairs} pairs"
    )
    reasons = _doubts(pairs)
    doubt = f", but {'; '.join(reasons)}" if reasons else ""
    valid = "INVALID" if reasons else "VALID"
    return CommandResult(
        command="compare",
        verdict=Verdict(
            valid=not reasons, sentence=f"{valid}: {sentence}{doubt}.", reasons=reasons
        ),
        metrics=metrics,
        detail={"pairs": len(pairs), "used": decided.pairs},
        settings=settings,
        environment=environment.describe(),
    )


def errors(runs: Sequence[RunResult]) -> float:
    """Fraction of all requests that failed."""
    asked = sum(run.metrics.get("requests", 0.0) for run in runs)
    return sum(run.metrics.get("errors", 0.0) for run in runs) / asked if asked else 0.0


def _doubts(pairs: Sequence[tuple[RunResult, RunResult]]) -> tuple[str, ...]:
    """Why latencies of A and B are not of the same work."""
    of_a, of_b = (errors(side) for side in zip(*pairs, strict=True))
    doubts = []
    if abs(of_a - of_b) > ERRORS_APART:
        doubts.append(f"{of_a:.1%} of A's requests failed and {of_b:.1%} of B's")
    tokens_a, tokens_b = (_tokens_out(side) for side in zip(*pairs, strict=True))
    if abs(tokens_a - tokens_b) > TOKENS_APART * max(tokens_a, tokens_b):
        doubts.append(f"A's answers had {tokens_a:.1f} tokens on average and B's {tokens_b:.1f}")
    return tuple(doubts)


def _tokens_out(runs: Sequence[RunResult]) -> float:
    """Mean output tokens of an answer."""
    answers = sum(r.metrics["request_throughput"] * r.metrics["duration_s"] for r in runs)
    tokens = sum(r.metrics["output_throughput"] * r.metrics["duration_s"] for r in runs)
    return tokens / answers if answers else 0.0


def _document(
    result: CommandResult,
    found: Mapping[str, Comparison],
    pairs: Sequence[tuple[RunResult, RunResult]],
    options: argparse.Namespace,
) -> Document:
    ratios = [
        Ratio(name, each.ratio, each.low, each.high, COMPARED[name]) for name, each in found.items()
    ]
    rows: list[list[Cell]] = [
        [one.name, one.ratio, one.low, one.high, one.outcome] for one in ratios
    ]
    each: list[list[Cell]] = [
        [number, a.metrics.get(options.gate), b.metrics.get(options.gate), _validity(a, b)]
        for number, (a, b) in enumerate(pairs, start=1)
    ]
    note = "B over A; each pair gives one ratio of its two runs' figures."
    return Document(
        title="Comparison",
        subtitle=f"A: {options.a}   B: {options.b}",
        verdict=result.verdict,
        sections=[
            Section("Ratios", [Table(["figure", "B/A", "low", "high", "B is"], rows, note=note)]),
            Section("Intervals", [Interval("B over A", ratios, "B / A")], page_only=True),
            Section("Pairs", [Table(["pair", f"A {options.gate}", "B", "valid"], each)]),
        ],
    )


def _validity(a: RunResult, b: RunResult) -> str:
    return "; ".join((*a.verdict.reasons, *b.verdict.reasons)) or "yes"
