"""Synthetic workloads: arrivals, lengths, shared prefixes, conversations and tenants."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Literal

import msgspec

from bench.load import arrivals, lengths
from bench.load.errors import BadLoad
from bench.load.schedule import (
    MOST_REQUESTS,
    Pacing,
    Planned,
    Schedule,
    Segment,
    with_shared,
)

WARM_TOKENS = 64

Start = Literal["cold", "warm", "primed"]
"""``cold``: the first request is measured. ``warm``: a few unrelated ones before, that pay for
connections and first touches. ``primed``: then every shared prefix once, so the intended hit
ratio holds from the first measured request on."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What a run asks for. Lengths are distributions (``bench.load.lengths``), in tokens.

    ``requests`` or ``seconds`` ends an open-loop run, ``requests`` any other. ``users`` is the
    number of closed-loop users, or the most requests of a batch in flight. ``hit_ratio``: fraction
    of each prompt that is one of its tenant's ``prefixes``. ``turns`` of a conversation follow
    ``think`` seconds after the answer before. ``tenant_skew``: a tenant's share falls with its
    rank to this power (0: all alike).
    """

    pacing: Pacing = "open"
    arrival: arrivals.Arrivals = "poisson"
    rate: float = 1.0
    burstiness: float = 1.0
    requests: int | None = None
    seconds: float | None = None
    users: int = 1
    prompt: str = "512"
    output: str = "64"
    hit_ratio: float = 0.0
    prefixes: int = 8
    turns: int = 1
    think: float = 0.0
    tenants: int = 1
    tenant_skew: float = 0.0
    start: Start = "warm"
    warm_requests: int = 2
    seed: int = 0


def build(workload: Workload) -> Schedule:
    """The schedule of ``workload``; the same for the same workload. Raises BadLoad."""
    _check(workload)
    requests = tuple(_requests(workload))
    if not requests:
        raise BadLoad("no request falls into so short a time at so low a rate")
    before = tuple(_before(workload, requests))
    return Schedule(
        pacing=workload.pacing,
        before=before,
        requests=with_shared(before, requests),
        in_flight=0 if workload.pacing == "open" else workload.users,
        tenants=tuple(f"tenant-{number}" for number in range(workload.tenants)),
    )


def _check(workload: Workload) -> None:
    if not 0 <= workload.hit_ratio < 1:
        raise BadLoad("a hit ratio is at least 0 and below 1: the last token is always computed")
    if workload.pacing == "open":
        if (workload.requests is None) == (workload.seconds is None):
            raise BadLoad("say either how many requests or how many seconds")
    elif workload.requests is None or workload.seconds is not None:
        raise BadLoad("say how many requests: only an open loop ends after seconds")
    expected = workload.requests or workload.rate * (workload.seconds or 0) * workload.turns
    if not 1 <= expected <= MOST_REQUESTS:
        raise BadLoad(f"a run has 1 to {MOST_REQUESTS:,} requests, not {expected:,.0f}")
    least = {"users": workload.users, "prefixes": workload.prefixes, "turns": workload.turns}
    for name, value in {**least, "tenants": workload.tenants}.items():
        if value < 1:
            raise BadLoad(f"{name}: 1 at least, not {value}")
    for name in ("think", "tenant_skew", "warm_requests"):
        if not 0 <= (value := getattr(workload, name)) < math.inf:
            raise BadLoad(f"{name}: 0 at least, not {value:g}")


def _requests(workload: Workload) -> Iterator[Planned]:
    """Measured requests in the order they are wanted."""
    source = random.Random(f"{workload.seed}/requests")
    prompt, output = lengths.parse(workload.prompt), lengths.parse(workload.output)
    shares = [rank**-workload.tenant_skew for rank in range(1, workload.tenants + 1)]
    numbers = itertools.count()
    for conversation, at in enumerate(_starts(workload)):
        tenant = source.choices(range(workload.tenants), shares)[0]
        for turn in range(workload.turns):
            number = next(numbers)
            if number == workload.requests:
                return
            first = turn == 0
            yield Planned(
                number=number,
                tenant=tenant,
                conversation=conversation,
                turn=turn,
                at=at if first else None,
                think=0.0 if first else workload.think,
                prompt=_prompt(workload, tenant, number, prompt.draw(source), source, first),
                output_tokens=output.draw(source),
            )


def _starts(workload: Workload) -> Iterator[float | None]:
    """When each conversation is to begin; None where a user begins it."""
    if workload.pacing == "users":
        return itertools.repeat(None)
    if workload.pacing == "batch":
        return itertools.repeat(0.0)
    source = random.Random(f"{workload.seed}/arrivals")
    times = arrivals.times(workload.arrival, workload.rate, source, workload.burstiness)
    end = math.inf if workload.seconds is None else workload.seconds
    return itertools.takewhile(lambda at: at < end, times)


def _prompt(
    workload: Workload,
    tenant: int,
    number: int,
    tokens: int,
    source: random.Random,
    first_turn: bool,
) -> tuple[Segment, ...]:
    shared = min(round(tokens * workload.hit_ratio), tokens - 1) if first_turn else 0
    own = Segment(f"own-{number}", tokens - shared)
    if not shared:
        return (own,)
    prefix = source.randrange(workload.prefixes)
    return (Segment(f"prefix-{tenant}-{prefix}", shared), own)


def _before(workload: Workload, requests: tuple[Planned, ...]) -> Iterator[Planned]:
    if workload.start == "cold":
        return
    for number in range(workload.warm_requests):
        prompt = (Segment(f"warm-{number}", WARM_TOKENS),)
        yield _ahead("warm", number, number % workload.tenants, prompt)
    if workload.start == "primed":
        longest: dict[tuple[int, str], int] = {}
        for planned in requests:
            if planned.turn == 0 and len(planned.prompt) > 1:
                prefix = planned.prompt[0]
                known = longest.get((planned.tenant, prefix.key), 0)
                longest[(planned.tenant, prefix.key)] = max(known, prefix.tokens)
        for number, ((tenant, key), tokens) in enumerate(longest.items(), workload.warm_requests):
            # One word more, as in the requests to come: the last token is never cached.
            whole = (Segment(key, tokens), Segment(f"prime-{number}", 1))
            yield _ahead("prime", number, tenant, whole)


def _ahead(
    phase: Literal["warm", "prime"], number: int, tenant: int, prompt: tuple[Segment, ...]
) -> Planned:
    return Planned(
        number=number,
        phase=phase,
        tenant=tenant,
        conversation=-1 - number,
        prompt=prompt,
        output_tokens=1,
    )
