"""Runs to report on, made from a seed, and one plot of every kind."""

from __future__ import annotations

import random

import msgspec

from bench.measures.summary import Asked, summary
from bench.records import Record
from bench.reporting.document import (
    Bars,
    BarSeries,
    Ecdf,
    HeatStrip,
    Interval,
    Limit,
    Lines,
    Plot,
    Ratio,
    Samples,
    Series,
    StackedBars,
)
from bench.result import RunResult, Slo

STAGE_SECONDS = {
    "route": 0.001, "queue": 0.02, "prefill": 0.1, "ship": 0.01, "handover": 0.003,
    "first_decode": 0.02,
}  # fmt: skip


def a_record(number: int, rng: random.Random, *, tells: bool = True, fails: bool = False) -> Record:
    """A request that began about ``number`` sixths of a second into the run."""
    intended = number / 6 + rng.uniform(0, 0.1)
    stages = {name: seconds * rng.uniform(0.5, 1.5) for name, seconds in STAGE_SECONDS.items()}
    tokens = [intended + 0.001 + sum(stages.values())]
    for _ in range(rng.randint(1, 30)):
        tokens.append(tokens[-1] + rng.uniform(0.01, 0.03))
    return Record(
        number=number,
        tenant=f"tenant-{number % 3}",
        planned_prompt_tokens=100,
        planned_output_tokens=len(tokens),
        intended=intended,
        sent=intended + 0.001,
        first_byte=None if fails else tokens[0],
        tokens=() if fails else tuple(tokens),
        finished=tokens[-1],
        status=503 if fails else 200,
        error="HTTP 503: no capacity left" if fails else "",
        prompt_tokens=None if fails else 100,
        output_tokens=None if fails else len(tokens),
        cached_tokens=None if fails else 30,
        path="disaggregated" if tells else "",
        stages={name: seconds * 1000 for name, seconds in stages.items()} if tells else {},
        tiers={"gpu": 20, "dram": 10} if tells and not fails else {},
    )


def a_run(count: int, *, tells: bool = True, failing: int = 0) -> tuple[RunResult, list[Record]]:
    """``count`` requests, the first ``failing`` of them without an answer."""
    rng = random.Random(1)
    records = [a_record(i, rng, tells=tells, fails=i < failing) for i in range(count)]
    slo = Slo(name="chat", ttft_ms=200, tpot_ms=30)
    result = summary(records, Asked(open_loop=True, hit_ratio=0.3, slo=slo))
    described = msgspec.structs.replace(
        result,
        schedule_sha256="9c2f" * 16,
        settings={"model": "a-model", "rate": 6.0, "prompt": {"shared": 0.3}, "tenants": ["a"]},
        environment={"cpu": "two cores", "engine": {"flags": "--block-size 16 " * 10}},
    )
    return described, records


def every_plot(values: list[float], name: str = "a series") -> list[Plot]:
    """A plot of each kind, with these values and this name wherever one can stand."""
    indices = [float(i) for i in range(len(values))]
    sizes = [abs(value) for value in values]
    edges = sorted(set(values))
    strip = edges if len(edges) > 1 else []
    limit = Limit(values[0], name) if values else None
    names = [f"{name} {i}" for i in range(len(values))]
    return [
        Lines(name, [Series(name, indices, values)], name, name, limit=limit),
        Lines(name, [Series(n, values, indices) for n in (name, "b", "c")], name, name, log_x=True),
        Ecdf(name, [Samples(name, values), Samples("b", [])], name, limit=limit),
        Ecdf(name, [Samples(name, sizes)], name, log_x=True, limit=limit),
        Bars(name, names, [BarSeries(name, values), BarSeries("b", [None] * len(values))], name),
        StackedBars(name, [name], [BarSeries(n, [v]) for n, v in zip(names, sizes, strict=True)],
                    name),
        HeatStrip(name, strip, edges or [0.0, 1.0],
                  [[1] * (len(edges) - 1) for _ in range(max(0, len(strip) - 1))], name, name,
                  log_y=True),
        Interval(name, [Ratio(name, v, v * 0.9, v * 1.1) for v in values], name),
    ]  # fmt: skip
