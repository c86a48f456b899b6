"""``kvferry bench compare``: two servers, or two folders of recorded runs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from bench import environment
from bench.commands import options as shared
from bench.commands import outcome
from bench.commands.run import watched
from bench.driving.fleet import Fleet
from bench.load.errors import BadLoad
from bench.measures.comparison import FEWEST_PAIRS, Comparison, compare
from bench.measures.summary import STOPPED
from bench.reporting.document import Cell, Document, Interval, Ratio, Section, Table
from bench.reporting.files import read_run, write_run
from bench.result import CommandResult, RunResult, Verdict

EXAMPLE = (
    "kvferry bench compare http://127.0.0.1:8000 http://127.0.0.1:8001 "
    "--rate 5 --seconds 10 --prompt 64 --output 8"
)

Better = Literal["lower", "higher"]
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

_ALIKE = ("api", "extra", "processes")
"""Settings that have to be the same on both sides, besides the schedule."""


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
        pairs = list(zip(recorded(Path(options.a)), recorded(Path(options.b)), strict=False))
    if not options.force:
        _require_alike(pairs)
    found = comparisons(pairs, options.confidence)
    if options.gate not in found:
        raise BadLoad(f"there are not {FEWEST_PAIRS} pairs of runs that tell {options.gate}")
    result = _result(found, options.gate, len(pairs), {"a": options.a, "b": options.b})
    document = _document(result, found, pairs, options)
    code = outcome.deliver_document(result, document, folder, options.json)
    worse = verdict_of(found[options.gate], COMPARED[options.gate]) == "worse"
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
                plan = shared.plan_of(options, targets[name], schedule)
                result, records = await watched(plan, fleet)
                if STOPPED in result.verdict.reasons:
                    raise KeyboardInterrupt  # the pairs so far are in the folder
                told = {**plan.settings(), **settings, "processes": options.processes}
                taken[name] = outcome.described(result, "run", told)
                write_run(folder / name / f"{number:03d}", taken[name], records)
            pairs.append((taken["a"], taken["b"]))
    return pairs


def recorded(folder: Path) -> list[RunResult]:
    """The runs in a folder's subfolders, by name. Raises BadLoad, BadResult."""
    found = sorted(file.parent for file in folder.glob("*/result.json"))
    if not found:
        raise BadLoad(f"{folder} is no server (http://…) and has no runs in it")
    return [read_run(each)[0] for each in found]


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


def verdict_of(comparison: Comparison, better: Better) -> Literal["better", "worse", "no"]:
    """Whether B is shown to be better or worse than A."""
    if comparison.low <= 1 <= comparison.high:
        return "no"
    return "better" if (comparison.high < 1) == (better == "lower") else "worse"


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
    found: Mapping[str, Comparison], gate: str, pairs: int, settings: dict[str, object]
) -> CommandResult:
    metrics = {f"ratio_{name}": comparison.ratio for name, comparison in found.items()}
    metrics |= {f"ratio_{name}_low": comparison.low for name, comparison in found.items()}
    metrics |= {f"ratio_{name}_high": comparison.high for name, comparison in found.items()}
    decided = found[gate]
    outcome_word = {
        "better": "B is better than A",
        "worse": "B is worse than A",
        "no": "no difference between A and B is shown",
    }[verdict_of(decided, COMPARED[gate])]
    sentence = (
        f"VALID: {outcome_word}: {gate} of B is {decided.ratio:.3f} of A's, "
        f"{decided.confidence:.0%} interval {decided.low:.3f} to {decided.high:.3f} "
        f"from {decided.pairs} pairs."
    )
    return CommandResult(
        command="compare",
        verdict=Verdict(valid=True, sentence=sentence),
        metrics=metrics,
        detail={"pairs": pairs, "used": decided.pairs},
        settings=settings,
        environment=environment.describe(),
    )


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
