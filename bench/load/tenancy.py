"""A mix of tenants as ServeGen recorded it: each with its own rate and burstiness.

A folder has one CSV for each client, a row for every ten minutes: start in seconds, requests per
second, coefficient of variation of the gaps, and the fitted process (github.com/alibaba/ServeGen).
"""

from __future__ import annotations

import csv
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load import arrivals, lengths
from bench.load.errors import BadLoad
from bench.load.schedule import Planned, Schedule, Segment, with_shared


@dataclass(frozen=True)
class Client:
    """``rate`` per second on average while it is active; ``cv``: of the gaps between requests."""

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
    shape = 1 / max(client.cv, 0.01) ** 2
    for at in arrivals.times("gamma", client.rate * scale, source, shape):
        if at >= seconds:
            return
        yield at, number


def _client(file: Path) -> Client | None:
    rates, cvs = [], []
    try:
        with file.open(newline="", encoding="utf-8") as rows:
            for row in csv.reader(rows):
                if (rate := float(row[1])) > 0:
                    rates.append(rate)
                    cvs.append(float(row[2]))
    except (OSError, ValueError, IndexError) as error:
        raise BadLoad(f"{file} is no client of a ServeGen mix: {error}") from None
    if not rates:
        return None
    return Client(file.stem.removesuffix("-trace"), sum(rates) / len(rates), sum(cvs) / len(cvs))
