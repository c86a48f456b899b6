"""How fast the workers of one layout are, learnt from what they did, and what a request will take.

Told for a request whose plan is made, each part from a curve of what was measured lately::

    waited   until its turn                               known
    before   until prefill computes it: the work that its worker has left, the way there, and the
             loading of what only DRAM holds              over tokens loaded
    prefill  computing what is not held                   over new and held tokens
    after    from there to the first token: shipping that computing did not hide, the handover,
             decode's first step                          over tokens shipped late

A request that decode computes by itself has a curve of its own, the way there included. What decode
does takes longer where it does something else as well, so that has its own curves. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.curves import Amount, PrefillCurve, RecentCurve, Sample
from kvstore.handoff import decode_computes_rest
from proxy.usage import Path
from proxy.workload import Given

STEP_TOKENS = 512
"""What an engine computes at a time, at most; what its last step computed is shipped late."""

UNMEASURED = PrefillCurve(0.01, 50e-6, 0.0)
"""A worker's speed until it has shown it."""

_UNMEASURED_MOVE = PrefillCurve(0.01, 5e-6, 0.0)
"""Likewise how fast tokens are loaded or shipped, and what comes with that."""

_LEAST_SECONDS = 1e-4
"""Nothing takes less; what seems to was told wrongly."""

_AFTER = ("ship", "handover", "first_decode")


@dataclass(frozen=True)
class Prediction:
    """What a request will find and take, told when its plan is made. Seconds, and tokens.

    ``cached``: what the workers will report, on this ``path``. Of the prompt's ``tokens``
    ``loads`` come from DRAM, and ``late`` ones are shipped when prefill has ended. ``work``: what
    its worker had left to do for others, a part of ``before``. ``busy``: decode has others, too.
    """

    path: Path
    tokens: int
    cached: int
    waited: float
    before: float
    prefill: float
    after: float
    work: float = 0.0
    loads: int = 0
    late: int = 0
    busy: bool = False

    @property
    def ttft(self) -> float:
        """From the request's arrival to its first token."""
        return self.waited + self.before + self.prefill + self.after

    def told(self) -> dict[str, float]:
        """For operators: tokens, and milliseconds; the parts are comparable with the stages."""
        parts = {
            "ttft": self.ttft,
            "queue": self.waited + self.before,
            "prefill": self.prefill,
            "after": self.after,
        }
        return {"cached": self.cached, **{name: round(s * 1000, 3) for name, s in parts.items()}}


class Pace:
    """Of one layout's workers. ``prefill``: seconds to compute; the slowness of one is apart."""

    def __init__(self, curve: PrefillCurve = UNMEASURED) -> None:
        self.prefill = RecentCurve(curve)
        self._before = RecentCurve(_UNMEASURED_MOVE)
        self._after = {busy: RecentCurve(_UNMEASURED_MOVE) for busy in (False, True)}
        self._alone = {busy: RecentCurve(curve) for busy in (False, True)}

    def loading(self, tokens: Amount) -> Amount:
        """Seconds that ``tokens`` take from DRAM into an engine's memory."""
        curve = self._before.curve
        return curve.seconds(tokens, tokens * 0.0) - curve.start

    def after(self, late: int, *, busy: bool) -> float:
        """Seconds from prefill's end to the first token, ``late`` tokens being shipped then."""
        curve = _measured(self._after[busy], self._after[not busy])
        return curve.seconds(float(late), 0.0)

    def paired(
        self, given: Given, tokens: int, decode_held: int, waited: float, *, busy: bool
    ) -> Prediction:
        """For a prompt that a worker was given; decode holds its first ``decode_held`` tokens."""
        only_ships = not given.loads and decode_computes_rest(
            given.held, tokens, given.worker.block_size
        )
        loading = self.loading(float(given.loads))
        shipped = tokens - decode_held
        late = shipped if only_ships else min(shipped, tokens - given.held, STEP_TOKENS)
        return Prediction(
            path="disaggregated",
            tokens=tokens,
            cached=given.held,
            waited=waited,
            before=given.work + self._before.curve.start + loading,
            prefill=0.0 if only_ships else given.seconds - given.loading,
            after=self.after(late, busy=busy),
            work=given.work,
            loads=given.loads,
            late=late,
            busy=busy,
        )

    def alone(self, tokens: int, decode_held: int, waited: float, *, busy: bool) -> Prediction:
        """For a prompt that the decode worker computes, but for the tokens that it holds."""
        curve = _measured(self._alone[busy], self._alone[not busy], self.prefill)
        return Prediction(
            path="decode-only",
            tokens=tokens,
            cached=decode_held,
            waited=waited,
            before=0.0,
            prefill=curve.seconds(float(tokens - decode_held), float(decode_held)),
            after=0.0,
            busy=busy,
        )

    def learn(self, made: Prediction, path: Path, stages: Mapping[str, float], cached: int) -> None:
        """How it went: ``path`` and ``stages`` (milliseconds) of a stream, ``cached`` tokens.

        Stages lie within moments that the proxy has seen itself: a worker that tells wrong ones
        shifts time from one to another, and adds none.
        """
        if path != made.path or not stages:
            return
        if path == "decode-only":
            seconds = sum(stages.values()) / 1000 - made.waited
            _add(self._alone[made.busy], made.tokens - cached, cached, seconds)
            return
        if "queue" not in stages or "prefill" not in stages:
            return
        after = sum(stages.get(name, 0.0) for name in _AFTER)
        if not made.prefill:
            after += stages["prefill"]
        _add(self._after[made.busy], made.late, 0, after / 1000)
        if cached == made.cached:
            begun = (stages.get("route", 0.0) + stages["queue"]) / 1000
            _add(self._before, made.loads, 0, begun - made.waited - made.work)


def _measured(*curves: RecentCurve) -> PrefillCurve:
    """The first of them that is; else the last one's guess."""
    return next((one.curve for one in curves if one.measured), curves[-1].curve)


def _add(curve: RecentCurve, new: int, held: int, seconds: float) -> None:
    curve.add(Sample(max(0, new), held, max(seconds, _LEAST_SECONDS)))
