"""A mix of tenants as ServeGen recorded it: each with its own rate and burstiness.

A folder has one CSV for each client, a row for every ten minutes: start in seconds, requests per
second, coefficient of variation of the gaps, and the fitted process (github.com/alibaba/ServeGen).
"""

from __future__ import annotations

import csv
import heapq
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load import arrivals, lengths
from bench.load.errors import BadLoad
from bench.load.schedule import MOST_REQUESTS, Planned, Schedule, Segment, with_shared


@dataclass(frozen=True)
class Client:
    """``rate`` per second on average over all of the record, silent stretches included: so the
    clients' rates have the proportions of their requests. ``cv``: of the gaps between requests,
    the median of the stretches that had any."""

    name: str
    rate: float
    cv: float


def read(folder: Path) -> list[Client]:
    """Clients that ever ask, the busiest first. Raises BadLoad."""
    clients = [client for file in sorted(folder.glob("*.csv")) if (client := _client(file))]
    if not clients:
        raise BadLoad(f"{folder} holds no client's CSV file with a rate above zero")
    return sorted(clients, key=lambda client: (-client.rate, client.name))


def mixed(
    clients: list[Client], rate: float, seconds: float, prompt: str, output: str, seed: int
) -> Schedule:
    """All clients together at ``rate`` per second for ``seconds``; each keeps its share and its
    burstiness, and is a tenant. Raises BadLoad.
    """
    prompts, outputs = lengths.parse(prompt), lengths.parse(output)
    if not 0 < rate * seconds <= MOST_REQUESTS:
        raise BadLoad(f"a run has 1 to {MOST_REQUESTS:,} requests, not {rate * seconds:,.0f}")
    scale = rate / sum(client.rate for client in clients)
    source = random.Random(f"{seed}/lengths")
    merged = heapq.merge(
        *(_times(number, client, scale, seconds, seed) for number, client in enumerate(clients))
    )
    requests = tuple(
        Planned(
            number=number,
            tenant=tenant,
            conversation=number,
            at=at,
            prompt=(Segment(f"own-{number}", prompts.draw(source)),),
            output_tokens=outputs.draw(source),
        )
        for number, (at, tenant) in enumerate(merged)
    )
    if not requests:
        raise BadLoad("no request falls into so short a time at so low a rate")
    return Schedule(
        pacing="open",
        requests=with_shared((), requests),
        tenants=tuple(client.name for client in clients),
    )


def _times(
    number: int, client: Client, scale: float, seconds: float, seed: int
) -> Iterator[tuple[float, int]]:
    source = random.Random(f"{seed}/{number}")
    shape = min(arrivals.SMOOTHEST, max(arrivals.BURSTIEST, 1 / max(client.cv, 1e-9) ** 2))
    for at in arrivals.times("gamma", client.rate * scale, source, shape):
        if at >= seconds:
            return
        yield at, number


def _client(file: Path) -> Client | None:
    rates, cvs = [], []
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = csv.reader(opened)
            for row in rows:
                rate, cv = _stretch(row, f"{file}, line {rows.line_num}")
                rates.append(rate)
                if rate:
                    cvs.append(cv)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadLoad(f"{file} is no client of a ServeGen mix: {error}") from None
    if not cvs:
        return None
    name = file.stem.removesuffix("-trace")
    return Client(name, statistics.fmean(rates), statistics.median(cvs))


def _stretch(row: list[str], line: str) -> tuple[float, float]:
    """Rate and coefficient of variation of ten minutes."""
    try:
        rate = float(row[1])
        cv = float(row[2]) if rate else 0.0
    except (ValueError, IndexError) as error:
        raise BadLoad(f"{line}: no line of a ServeGen client: {error}") from None
    if not (0 <= rate < math.inf and 0 <= cv < math.inf):
        raise BadLoad(f"{line}: no line of a ServeGen client: rate {rate}, variation {cv}")
    return rate, cv
