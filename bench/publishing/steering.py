"""README's figures of what the proxy knows, decides and costs.

One result of each command is kept as ``bench/results/COMMAND.json``; README's section between the
marks is this module's text of those that are there. A test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.publishing import page
from bench.publishing.page import RESULTS, CannotPublish
from bench.reporting.document import Bars, BarSeries, Lines, Plot, Series
from bench.reporting.files import write_whole
from bench.reporting.wording import tell
from bench.result import CommandResult
from bench.statistics import median

SECTION = "steering"
COMMANDS = ("simulate", "predict", "restart", "index", "router")

_OURS = "kvferry"
_RULES = {
    _OURS: "kvferry",
    "least-work": "least work first",
    "greedy-prefix": "longest prefix",
    "consistent-hash": "consistent hashing",
    "round-robin": "round robin",
}
_ROUTERS = {
    _OURS: "kvferry",
    "cache_aware": "vllm-router, cache_aware",
    "round_robin": "vllm-router, round_robin",
}


def publish(clone: Path, files: Sequence[Path]) -> None:
    """Keeps the results in ``files`` in ``clone`` and rewrites README's section.

    Raises CannotPublish.
    """
    new = {one.command: (one, file) for one, file in zip(map(_result, files), files, strict=True)}
    results = kept(clone) | {command: one for command, (one, _) in new.items()}
    written = page.replaced(page.read(clone), SECTION, section(results))
    for command, (_, file) in new.items():
        write_whole(clone / RESULTS / f"{command}.json", file.read_bytes())
    page.write(clone, written, plots(results))


def kept(clone: Path) -> dict[str, CommandResult]:
    """The results that ``clone`` has, by command. Raises CannotPublish."""
    files = {command: clone / RESULTS / f"{command}.json" for command in COMMANDS}
    return {command: _result(file) for command, file in files.items() if file.exists()}


def section(results: Mapping[str, CommandResult]) -> str:
    """What README says of ``results``, Markdown."""
    tell_of = {
        "simulate": _simulated,
        "predict": _predicted,
        "restart": _restarted,
        "index": _indexed,
        "router": _routed,
    }
    parts = []
    for command in COMMANDS:
        if command in results:
            parts += tell_of[command](results[command])
            parts += page.images(plots({command: results[command]}))
    return "\n\n".join(parts) + "\n"


def plots(results: Mapping[str, CommandResult]) -> dict[str, Plot]:
    """Plots by file name."""
    draw = {"simulate": _ttfts, "index": _lookups, "router": _rates}
    return {
        f"{command}.svg": draw[command](results[command]) for command in draw if command in results
    }


def _simulated(result: CommandResult) -> list[str]:
    asked, found = result.settings, result.metrics
    rows = ["| | hit ratio | busiest / mean | TTFT p50, s | p99, s |", "|---|---|---|---|---|"]
    for rule in _told(result.detail["ttft_s"], _RULES):
        before = "" if rule == _OURS else f"{rule.replace('-', '_')}_"
        names = ("hit_ratio", "imbalance", "ttft_p50_s", "ttft_p99_s")
        told = " | ".join(tell(found[before + name]) for name in names)
        rows.append(f"| {_RULES[rule]} | {told} |")
    rows.append(f"| infinite cache | {tell(found['oracle_hit_ratio'])} | | | |")
    how = (
        f"**Where requests go**: {asked['requests']:,} requests of Mooncake's conversation trace, "
        f"{asked['workers']} simulated engines with {asked['blocks']:,} blocks of 512 tokens each, "
        f"which compute {1e6 / asked['engine']['token_us']:,.0f} tokens per second, and "
        f"{asked['utilization']:.0%} of the load that an infinite cache would leave. TTFT ends "
        f"with the prefill; p99 is {found['ttft_p99_vs_no_queue']:.2f} times what it would be "
        f"without queues {_source(result)}. {result.verdict.sentence}"
    )
    return [how, "\n".join(rows)]


def _predicted(result: CommandResult) -> list[str]:
    found = result.metrics
    told = (
        f"**What the proxy foretells**: of {found['requests']:,.0f} mixed requests to real engines "
        f"{found['equal_cached_share']:.1%} found as many cached tokens as it had said when it "
        f"planned them, and the time to the first token was within {found['ttft_error_p50']:.0%} "
        f"at the median {_source(result)}. {result.verdict.sentence}"
    )
    return [told]


def _restarted(result: CommandResult) -> list[str]:
    found = result.metrics
    ratios = [f"{found[f'hit_ratio_{when}']:.2f}" for when in ("before", "after", "blind")]
    told = (
        "**A proxy killed under load** steers as well as before, but for a twentieth of its hit "
        f"ratio, {found['restart_seconds_to_95']:.1f} s after the first worker told the new one "
        "what it holds; hit ratio {} before, {} after, {} where workers are chosen blindly "
    ).format(*ratios) + f"{_source(result)}. {result.verdict.sentence}"
    return [told]


def _indexed(result: CommandResult) -> list[str]:
    found = result.metrics
    told = (
        "**What it costs to know who holds what**: a lookup of 512 blocks among 100 million "
        f"entries takes {found['lookup_1e8_vs_1e6']:.2f} times as long as among one million, with "
        f"1,000 workers {found['lookup_1000w_vs_8w']:.2f} times as long as with 8, with 10,000 "
        f"tenants {found['lookup_10000t_vs_1t']:.2f} times as long as with one; an entry takes "
        f"{found['bytes_per_entry']:.0f} bytes, and {found['events_per_s'] / 1e6:.1f} million "
        f"block operations per second are taken in {_source(result)}. {result.verdict.sentence}"
    )
    return [told]


def _routed(result: CommandResult) -> list[str]:
    found, asked = result.metrics, result.settings
    rows = [
        (
            "| | 1 KB: requests/s | CPU each, ms | added TTFT p50, ms "
            "| 220 KB: requests/s | CPU each, ms | added TTFT p50, ms |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for router in (one for one in _ROUTERS if f"{one}_rps_1k" in found):
        told = []
        for kind in ("1k", "220k"):
            told += [
                tell(found[f"{router}_rps_{kind}"]),
                tell(found[f"{router}_router_us_{kind}"] / 1e3),
                tell(found[f"{router}_added_ttft_{kind}_ms"]),
            ]
        rows.append(f"| {_ROUTERS[router]} | {' | '.join(told)} |")
    how = (
        f"**What the proxy costs a request**, on one core, in front of {asked['workers']} stub "
        "workers; of 220 KB nine tenths were asked before, and kvferry tokenizes the rest "
        f"({tell(found['tokenize_new_ms'])} ms by itself), which vllm-router does not "
        f"{_source(result)}. {result.verdict.sentence}"
    )
    return [how, "\n".join(rows)]


def _ttfts(result: CommandResult) -> Plot:
    shares = [rank / 100 for rank in result.detail["ranks"]]
    found = result.detail["ttft_s"]
    series = [Series(_RULES[rule], found[rule], shares) for rule in _told(found, _RULES)]
    title = f"TTFT of a conversation trace, {result.settings['workers']} simulated workers"
    return Lines(title, series, "TTFT, s", "share of requests", log_x=True)


def _lookups(result: CommandResult) -> Plot:
    worlds = result.detail["worlds"]
    taken = [1e6 * median(world["lookup_s"]) for world in worlds]
    names = [world["world"] for world in worlds]
    return Bars("Lookup of a prompt of 512 blocks", names, [BarSeries("lookup", taken)], "us")


def _rates(result: CommandResult) -> Plot:
    routers = [one for one in _ROUTERS if f"{one}_rps_1k" in result.metrics]
    series = [
        BarSeries(f"{kind}B", [result.metrics[f"{router}_rps_{kind}"] for router in routers])
        for kind in ("1k", "220k")
    ]
    names = [_ROUTERS[router] for router in routers]
    return Bars("Requests per second through one core", names, series, "requests/s")


def _told(found: Mapping[str, object], names: Mapping[str, str]) -> list[str]:
    return [name for name in names if name in found]


def _source(result: CommandResult) -> str:
    machine = result.environment
    return (
        f"(`kvferry bench {result.command}`, {machine['date'][:10]}, {machine['cores']} hardware "
        f"threads of {machine['cpu']}, [JSON]({RESULTS / result.command}.json))"
    )


def _result(file: Path) -> CommandResult:
    try:
        result = msgspec.json.decode(file.read_bytes(), type=CommandResult)
    except OSError as error:
        raise CannotPublish(f"{file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise CannotPublish(f"{file} is no result: {error}") from None
    if result.command not in COMMANDS:
        raise CannotPublish(f"{file} is of {result.command}; published are {', '.join(COMMANDS)}")
    return result
