"""README's figures of ``kvferry bench headline``.

The result lies in ``bench/results/headline.json``, its plots beside it; README's section between
the two marks is this module's text of that file. A test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.publishing import page
from bench.publishing.page import RESULTS
from bench.reporting.document import Bars, BarSeries, Ecdf, Plot, Samples
from bench.reporting.files import write_json
from bench.statistics import median

SECTION = "measured"
RESULT = RESULTS / "headline.json"

NAMES = {
    "plain": "two vLLM engines",
    "nixl": "vLLM, NIXL pair",
    "lmcache": "vLLM, LMCache",
    "kvferry": "kvferry",
}

WORDS = {
    "miss_ttft_vs_plain": "nothing cached: TTFT / one plain vLLM engine",
    "nixl_miss_ttft_vs_plain": "the same for vLLM's NIXL pair",
    "hit_ttft_vs_nixl": "prefix cached on prefill, decode cold: TTFT / NIXL's pair",
    "remote_hit_vs_local_hit": "the same: TTFT / prefix cached on decode itself",
    "first_token_after_prefill_ms": "first token after the prefill leg ended, ms",
    "decode_step_ms": "one decode step, ms",
    "dram_ttft_vs_miss": "prefill worker killed, prompt in DRAM: TTFT / uncached",
    "dram_cached_fraction": "the same: part of the prompt found there",
    "greedy_equal_fp32": "greedy answers equal to one vLLM engine, float32",
    "greedy_equal_bf16": "the same in bfloat16",
    "itl_p99_vs_aggregated": "mixed load: ITL p99 / two plain engines",
    "ttft_p50_vs_aggregated": "mixed load: TTFT p50 / two plain engines",
    "soak_errors": "{soak_clients} clients for {soak_seconds:g} s: errors",
    "soak_leaked_blocks": "the same: leaked blocks and locks",
    "soak_rss_growth": "the same: growth of the process that grew most",
}


def publish(clone: Path, result: Mapping[str, Any]) -> None:
    """Keeps ``result`` in ``clone`` and rewrites README's section. Raises CannotPublish."""
    written = page.replaced(page.read(clone), SECTION, section(result))
    write_json(clone / RESULT, result)
    page.write(clone, written, plots(result))


def section(result: Mapping[str, Any]) -> str:
    """What README says of ``result``, Markdown."""
    parts = [_how(result), _table(result["verdicts"], result["workload"])]
    if systems := _systems(result):
        parts.append(systems)
    parts += page.images(plots(result))
    parts += [f"Not as it should be: {complaint}" for complaint in result["complaints"]]
    return "\n\n".join(parts) + "\n"


def plots(result: Mapping[str, Any]) -> dict[str, Plot]:
    """Plots by file name."""
    reuse = _reuse(result)
    if not reuse:
        return {}
    ttfts = [
        Samples(NAMES[system], [ttft for one in rounds.values() for ttft in one["ttfts_ms"]])
        for system, rounds in reuse.items()
    ]
    gaps = [
        BarSeries(f"ITL {rank}", [_median_of(rounds, "itl_ms", rank) for rounds in reuse.values()])
        for rank in ("p50", "p99")
    ]
    share = f"{result['workload']['reuse_fraction']:.0%}"
    return {
        "headline-ttft.svg": Ecdf(f"TTFT, {share} of each prompt cached", ttfts, "TTFT, ms", True),
        "headline-itl.svg": Bars(
            "ITL under the same load", [NAMES[system] for system in reuse], gaps, "ms"
        ),
    }


def _how(result: Mapping[str, Any]) -> str:
    machine = result["environment"]
    varied = " ".join(f"{name}={value}" for name, value in result["varied"].items())
    told = (
        f"`kvferry bench headline` on {machine['date'][:10]}, {machine['cores']} hardware threads "
        f"of {machine['cpu']}, {result['dtype']}, {result['rounds']} rounds, in "
        f"{result['metrics']['total_minutes']:.0f} minutes ([JSON]({RESULT})). "
    )
    if varied:
        told += f"Asked with `--set {varied}`. "
    if not result["specified_workload"]:
        told += (
            "That is not the load the bounds were set for, nor the machine: they are there to "
            "compare with. "
        )
    return told + "Ratios are taken within a round; their median is shown."


def _table(verdicts: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> str:
    rows = ["| | measured | bound | |", "|---|---|---|---|"]
    for one in verdicts:
        if one["metric"] not in WORDS:
            continue
        bound = "" if one["limit"] is None else f"{_SIGNS[one['kind']]} {one['limit']:.4g}"
        value = "–" if one["value"] is None else f"{one['value']:.3g}"
        outcome = {"PASS": "kept", "FAIL": "**short**", "not measured": "not measured"}
        rows.append(
            f"| {WORDS[one['metric']].format(**asked)} | {value} | {bound} | "
            f"{outcome.get(one['outcome'], '')} |"
        )
    return "\n".join(rows)


_SIGNS = {"at most": "≤", "at least": "≥"}


def _systems(result: Mapping[str, Any]) -> str:
    """One load on every system; the medians of its rounds."""
    reuse = _reuse(result)
    if not reuse:
        return ""
    asked = result["workload"]
    load = (
        f"{asked['reuse_requests']} requests at {asked['reuse_rate']:g} per second, "
        f"{asked['reuse_prompt']} tokens of which {asked['reuse_fraction']:.0%} were asked before, "
        f"{asked['reuse_output']} out; medians of the rounds, milliseconds:"
    )
    rows = [
        load,
        "",
        "| | TTFT p50 | ITL p50 | ITL p99 | hits |",
        "|---|---|---|---|---|",
    ]
    for system, rounds in reuse.items():
        figures = [
            _median_of(rounds, "ttft_ms", "p50"),
            _median_of(rounds, "itl_ms", "p50"),
            _median_of(rounds, "itl_ms", "p99"),
        ]
        told = " | ".join("too few" if one is None else f"{one:,.0f}" for one in figures)
        hits = median([one["hit_ratio"] for one in rounds.values()])
        rows.append(f"| {NAMES[system]} | {told} | {hits:.1%} |")
    return "\n".join(rows)


def _median_of(rounds: Mapping[str, Any], kind: str, rank: str) -> float | None:
    """Over the rounds; None for a 99th percentile of too few gaps."""
    if rank == "p99" and not all(one["enough_for_p99"] for one in rounds.values()):
        return None
    return median([one[kind][rank] for one in rounds.values()])


def _reuse(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    part = result["parts"].get("reuse", {})
    return {system: part[system] for system in NAMES if part.get(system)}
