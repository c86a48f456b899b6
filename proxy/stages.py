"""Where the time to a request's first token went.

Told for a request that both workers served::

    stage         from                     to
    route         the request arrived      it waits for a worker, or its leg is sent
    queue         ... waits, or is sent    prefill's first forward pass is scheduled, or its engine
                                           takes up a prompt that it only ships
    prefill       ... scheduled            the prefill leg has ended
    ship          ... ended                the last block is in place on decode; 0 if it was before
    handover      ... in place             decode schedules the request's first step
    first_decode  ... scheduled            the first token leaves

A request that the decode worker computed has ``route``, ``queue`` (to its first step there, with
any wait for blocks that did not come) and ``prefill``, which ends with the first token. An answer
that is not streamed has no moment of its first token, so its last stage is left out.

Workers share no clock with the proxy. Each tells how long before an event that the proxy sees too
(the end of its leg, the first bytes of its answer) something happened; the way from there to here
is counted as if it took no time. The proxy's own moments bound what workers say. A stage whose end
nobody told is left out, and its time counted in the one that follows. So the stages of a stream
add up to its TTFT, to the microsecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.messages import Outcome, Times
from proxy.usage import Path, PrefillEnd

_Ends = list[tuple[str, float | None]]


@dataclass(frozen=True)
class Moments:
    """When a request got where: seconds on the proxy's clock, None where it did not, or not yet.

    ``answered``: the decode leg's answer began to come; in a stream, with the first token.
    """

    arrived: float
    routed: float | None
    prefill_ended: float | None
    answered: float
    streamed: bool


@dataclass(frozen=True)
class Told:
    """What the workers told of their part, None where they did not. Milliseconds.

    ``prefill_ms`` before the prefill leg's end its first pass was scheduled; ``in_place_ms`` and
    ``begun_ms`` before the decode leg's answer the last block was in place, and decode scheduled
    its first step.
    """

    prefill_ms: float | None = None
    in_place_ms: float | None = None
    begun_ms: float | None = None


def told(times: Times | None, outcome: Outcome | None, prefill: PrefillEnd | None) -> Told:
    """What the legs' answers say."""
    report = prefill.report if prefill is not None else None
    prefill_ms = None if report is None else report.prefill_ms
    if times is None:
        return Told(prefill_ms)
    in_place_ms = None if outcome is None else times.arrived_ms - outcome.wait_ms
    return Told(prefill_ms, in_place_ms, times.begun_ms)


def stages(path: Path, moments: Moments, workers: Told) -> dict[str, float]:
    """Milliseconds by stage, in order. Never negative, whatever the workers told."""
    begun = _before(moments.answered, workers.begun_ms)
    first_token = moments.answered if moments.streamed else None
    if path != "disaggregated":
        return _durations(moments, [("queue", begun), ("prefill", first_token)])
    in_place = _before(moments.answered, workers.in_place_ms)
    prefill_ended = moments.prefill_ended if moments.prefill_ended is not None else in_place
    if in_place is not None and prefill_ended is not None:
        in_place = max(in_place, prefill_ended)
    ends: _Ends = [
        ("queue", _before(moments.prefill_ended, workers.prefill_ms)),
        ("prefill", prefill_ended),
        ("ship", in_place),
        ("handover", begun),
        ("first_decode", first_token),
    ]
    return _durations(moments, ends)


def so_far(path: Path, moments: Moments, workers: Told) -> dict[str, float]:
    """``stages``, less those that the prefill leg's end may still change."""
    known = stages(path, moments, workers)
    if path != "disaggregated" or moments.prefill_ended is not None:
        return known
    return {name: ms for name, ms in known.items() if name == "route"}


def timing_header(moments: Moments, known: Mapping[str, float]) -> str:
    """The W3C's Server-Timing, in milliseconds.

    Two moments, counted from the request's arrival, as far as they are known by now:
    ``prefill_ended`` (the prefill leg) and ``first_token``. Then stages, which are durations.
    """
    entries: dict[str, float] = {}
    if moments.prefill_ended is not None:
        entries["prefill_ended"] = (moments.prefill_ended - moments.arrived) * 1000
    if moments.streamed:
        entries["first_token"] = (moments.answered - moments.arrived) * 1000
    return ", ".join(f"{name};dur={ms:.3f}" for name, ms in {**entries, **known}.items())


def _before(moment: float | None, milliseconds: float | None) -> float | None:
    return None if moment is None or milliseconds is None else moment - milliseconds / 1000


def _durations(moments: Moments, ends: _Ends) -> dict[str, float]:
    """From the moments at which stages end; a later one corrects those before it."""
    last = max(0.0, moments.answered - moments.arrived)
    routed = moments.arrived if moments.routed is None else moments.routed
    begin = _microseconds(routed - moments.arrived, 0.0, last)
    known = [
        (name, _microseconds(at - moments.arrived, begin / 1e6, last))
        for name, at in ends
        if at is not None
    ]
    bound = _microseconds(last, 0.0, last)
    corrected = []
    for name, end in reversed(known):
        bound = min(bound, end)
        corrected.append((name, bound))
    found = {} if moments.routed is None else {"route": begin / 1000}
    for name, end in reversed(corrected):
        found[name] = (end - begin) / 1000
        begin = end
    return found


def _microseconds(seconds: float, low: float, high: float) -> int:
    # In this order a figure that is no number counts as the lower bound.
    return round(min(high, max(low, seconds)) * 1e6)
