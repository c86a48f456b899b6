"""What a run of the router benchmark found: bounds, every system's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bench.measures.bound import Bound, Judgement, in_words, judged_ratio
from bench.measures.comparison import FEWEST_PAIRS, mean_interval
from bench.noise import NOISY_CORES
from bench.reporting.bounds import bounds_table
from bench.reporting.document import Cell, Document, Paragraph, Section, Table
from bench.result import Verdict
from bench.routing.measuring import DIRECT, OURS, POLICIES, Rate, Taken
from bench.routing.prompts import KINDS, Kind
from bench.routing.settings import Amounts
from bench.statistics import median

BOUNDS = (
    Bound("rps_1k_vs_cache_aware", "at least", 1.0),
    Bound("added_ttft_1k_vs_cache_aware", "at most", 1.0),
    Bound("rps_220k_vs_cache_aware", "at least", 1.0),
    Bound("added_ttft_220k_vs_cache_aware", "at most", 1.0),
    Bound("novel_220k_over_tokenize_ms", "at most", 2.0),
    Bound("rps_1000w_vs_8w", "at least", 0.8),
)
PEER = "cache_aware"

_LEAST_SECONDS = 1e-6
"""What is left of a time at least after that for tokenizing was taken off."""
_SATURATED = 0.9
"""A router that computes for less of a burst was not what held it up."""

_NOTE = (
    "Requests per second of a closed loop; added TTFT is the median of requests one by one, less "
    "that of the same requests sent to a worker. From kvferry's figures with 220 KB the time to "
    "tokenize the new tenth of a prompt is taken off. Ratios are taken within a round; their "
    "interval (95 %) is over rounds, and its worse end is what counts. Of prompts never seen "
    "before (220 KB): added TTFT less one tokenization of the whole."
)


def judgements(taken: Taken) -> list[Judgement]:
    """Every bound that could be measured."""
    found = {}
    if not taken.missing:
        for kind in KINDS:
            ours, theirs = (_seconds(taken, name, kind) for name in (OURS, PEER))
            found[f"rps_{kind}_vs_{PEER}"] = (_less_tokenizing(taken, kind, ours), theirs)
            ours, theirs = (_added(taken, name, kind) for name in (OURS, PEER))
            found[f"added_ttft_{kind}_vs_{PEER}"] = (theirs, _less_tokenizing(taken, kind, ours))
    if taken.scale and not taken.unscaled:
        few, many = (_rates(taken.scale[fleet]) for fleet in ("few", "many"))
        found["rps_1000w_vs_8w"] = (few, many)
    judged = []
    for bound in BOUNDS:
        if bound.metric in found:
            judged.append(judged_ratio(bound, *found[bound.metric]))
        elif bound.metric == "novel_220k_over_tokenize_ms":
            judged.append(_judged_mean(bound, _novel_ms(taken)))
    return judged


def metrics(judged: Sequence[Judgement], taken: Taken) -> dict[str, float]:
    """By name; medians of the rounds but for what is judged."""
    told: dict[str, float] = {}
    for one in judged:
        told |= one.metrics()
    for (system, kind), rates in taken.rates.items():
        told[f"{system}_rps_{kind}"] = median(_rates(rates))
        if system != DIRECT:
            told[f"{system}_router_us_{kind}"] = median([one.router_us for one in rates])
            told[f"{system}_added_ttft_{kind}_ms"] = 1e3 * median(_added(taken, system, kind))
    for fleet, rates in taken.scale.items():
        told[f"rps_{fleet}_workers"] = median(_rates(rates))
    for text, seconds in taken.tokenizing.items():
        told[f"tokenize_{text}_ms"] = 1e3 * median(seconds)
    return told


def verdict(judged: Sequence[Judgement], amounts: Amounts, taken: Taken) -> Verdict:
    """Valid where every bound was measured as it was meant, and kept."""
    reasons = [why.splitlines()[0] for why in (taken.missing, taken.unscaled) if why]
    meant = {**asdict(Amounts()), "rounds": amounts.rounds, "seed": amounts.seed}
    changed = [name for name, value in asdict(amounts).items() if value != meant[name]]
    if changed:
        reasons.append(f"the bounds are of other amounts: {', '.join(changed)}")
    if amounts.rounds < FEWEST_PAIRS:
        reasons.append(f"{amounts.rounds} rounds are too few for intervals")
    short = [one.bound.metric for one in judged if one.outcome == "short"]
    sentence = in_words(short)
    valid = not short and not reasons
    reasons += [
        f"{system} computed for {busy:.0%} of its bursts of {kind}: others held it up"
        for (system, kind), busy in _busy(taken).items()
        if busy < _SATURATED
    ]
    if taken.restless:
        reasons.append("the proxy of many workers was busy without a request")
    if taken.others > NOISY_CORES:
        reasons.append(f"others computed on {taken.others:.2f} cores meanwhile")
    return Verdict(valid=valid, sentence=sentence, reasons=tuple(reasons))


def document(judged: Sequence[Judgement], taken: Taken, subtitle: str, found: Verdict) -> Document:
    """Bounds first."""
    sections = [Section("Bounds", [bounds_table(judged), Paragraph(_NOTE)])]
    sections += [Section(f"Prompts of {kind}B", [_systems(taken, kind)]) for kind in KINDS]
    if taken.scale:
        sections.append(Section("Workers", [_fleets(taken)]))
    return Document("Router", subtitle, found, sections)


def detail(taken: Taken) -> dict[str, object]:
    """Every round's figures."""
    return {
        "peer": taken.peer,
        "rates": {
            f"{system} {kind}": [asdict(one) for one in rates]
            for (system, kind), rates in taken.rates.items()
        },
        "ttfts_s": {f"{system} {kind}": found for (system, kind), found in taken.ttfts.items()},
        "novel_ttfts_s": taken.novel,
        "scale": {fleet: [asdict(one) for one in rates] for fleet, rates in taken.scale.items()},
        "tokenizing_s": taken.tokenizing,
    }


def _rates(rates: Sequence[Rate]) -> list[float]:
    return [one.per_second for one in rates]


def _seconds(taken: Taken, system: str, kind: Kind) -> list[float]:
    """That a request took, on average, in each round's burst."""
    return [1 / one.per_second for one in taken.rates[system, kind]]


def _added(taken: Taken, system: str, kind: Kind) -> list[float]:
    """Seconds of TTFT, round by round, that a worker asked directly does not take."""
    both = zip(taken.ttfts[system, kind], taken.ttfts[DIRECT, kind], strict=True)
    return [max(_LEAST_SECONDS, through - direct) for through, direct in both]


def _less_tokenizing(taken: Taken, kind: Kind, seconds: Sequence[float]) -> list[float]:
    """Our ``seconds`` without what the new text costs a router that reads it at all."""
    if kind == "1k":
        return list(seconds)
    both = zip(seconds, taken.tokenizing["new"], strict=True)
    return [max(_LEAST_SECONDS, all_of_it - tokenizing) for all_of_it, tokenizing in both]


def _novel_ms(taken: Taken) -> list[float]:
    each = zip(taken.novel[OURS], taken.novel[DIRECT], taken.tokenizing["novel"], strict=True)
    return [1e3 * (through - direct - tokenizing) for through, direct, tokenizing in each]


def _judged_mean(bound: Bound, values: Sequence[float]) -> Judgement:
    if len(values) < FEWEST_PAIRS:
        return Judgement(bound, median(values))
    return Judgement(bound, *mean_interval(values))


def _busy(taken: Taken) -> Mapping[tuple[str, Kind], float]:
    """The part of its bursts for which each router computed."""
    return {
        (system, kind): median([one.busy for one in rates])
        for (system, kind), rates in taken.rates.items()
        if system != DIRECT
    }


def _systems(taken: Taken, kind: Kind) -> Table:
    rows: list[list[Cell]] = []
    for system in (OURS, *POLICIES, DIRECT):
        rates = taken.rates.get((system, kind))
        if rates is not None:
            added = 1e3 * median(_added(taken, system, kind)) if system != DIRECT else None
            ttft = 1e3 * median(taken.ttfts[system, kind])
            rows.append([_called(system), *_burst(rates), ttft, added])
    return Table(["", *_BURST, "TTFT p50, ms", "added, ms"], rows)


def _fleets(taken: Taken) -> Table:
    rows: list[list[Cell]] = [[fleet, *_burst(rates)] for fleet, rates in taken.scale.items()]
    return Table(["kvferry, workers", *_BURST], rows)


_BURST = ("requests/s", "router, us each", "router busy", "workers and clients busy")


def _burst(rates: Sequence[Rate]) -> list[Cell]:
    router = median([one.router_us for one in rates])
    busy, others = median([one.busy for one in rates]), median([one.others for one in rates])
    return [median(_rates(rates)), router or None, busy or None, others]


def _called(system: str) -> str:
    return f"vllm-router, {system}" if system in POLICIES else system
