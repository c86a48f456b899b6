"""What the times say: control, Kolmogorov-Smirnov, equivalence. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.audit.findings import Finding, Part, Verdict
from bench.audit.timing import power
from bench.audit.timing.measuring import Times
from bench.audit.timing.ranks import Interval, Ks, auc, ks_less, shift
from bench.audit.timing.trials import PROMPT_TOKENS, SHARED, Arm

_Pair = tuple[Sequence[float], Sequence[float]]
"""Hits and misses."""

CONTROL_P = 1e-6
"""Above this the control has not found its own clearly, and the audit has no power."""

LEAK_P = 0.01
CONFIDENCE = 0.95
TWO_ONE_SIDED = 1 - 2 * power.ALPHA


def judged(times: Times) -> Part:
    """The part of the audit that these times make. Raises ValueError where an arm is empty."""
    same = times.arm("same", hit=True), times.arm("same", hit=False)
    other = times.arm("other", hit=True), times.arm("other", hit=False)
    control, ks = _control(*same), ks_less(*other)
    sound = control.verdict == "pass" and not times.broken
    wide, moved = auc(*other, CONFIDENCE), _ms(shift(*other, CONFIDENCE))
    samples = min(map(len, other))
    return Part(
        name="statistical",
        findings=[control, _ks_row(other, ks, sound=sound), _equal_row(other, sound=sound)],
        metrics={
            "auc_cross_tenant": wide.value,
            "auc_cross_tenant_low": wide.low,
            "auc_cross_tenant_high": wide.high,
            "ks_p_cross_tenant": ks.p,
            "shift_ms_cross_tenant": moved.value,
            "samples_cross_tenant": float(samples),
            "equivalence_power": power.power_of(samples),
            "auc_same_tenant": control.figures["auc"],
            "ks_p_same_tenant": control.figures["p"],
        },
        notes=[_method(times)],
        detail={
            f"{arm.who}_{'hit' if arm.hit else 'miss'}": all_ms(of) for arm, of in times.of.items()
        },
    )


def _ks_row(pair: _Pair, ks: Ks, *, sound: bool) -> Finding:
    verdict: Verdict = "fail" if ks.p < LEAK_P else "pass"
    return Finding(
        name="ks",
        verdict=verdict if sound else "invalid",
        why=f"fails below {LEAK_P:g}; a pass alone proves nothing",
        figures={**_figures(*pair), "distance": ks.distance, "p": ks.p},
    )


def _equal_row(pair: _Pair, *, sound: bool) -> Finding:
    wide, narrow = auc(*pair, CONFIDENCE), auc(*pair, TWO_ONE_SIDED)
    samples = min(map(len, pair))
    chance = power.power_of(samples)
    return Finding(
        name="equivalence",
        verdict=_equivalent(narrow, wide) if sound else "invalid",
        why=(
            f"AUC within 0.5 ± {power.MARGIN:g} at alpha {power.ALPHA:g}: its 90 % interval is "
            f"{narrow.low:.3f} to {narrow.high:.3f}; {samples} samples of each kind have a power "
            f"of {chance:.2f}, {power.needed(power.POWER)} one of {power.POWER:g}"
        ),
        figures={**_figures(*pair), **_sizes(wide, _ms(shift(*pair, CONFIDENCE))), "power": chance},
    )


def _control(hits: Sequence[float], misses: Sequence[float]) -> Finding:
    """A tenant must find what is its own."""
    ks, found = ks_less(hits, misses), auc(hits, misses, CONFIDENCE)
    moved = _ms(shift(hits, misses, CONFIDENCE))
    return Finding(
        name="control, one tenant",
        verdict="pass" if ks.p < CONTROL_P else "invalid",
        why=f"a tenant's own repeats have to be told from new prompts, p below {CONTROL_P:g}",
        figures={
            **_figures(hits, misses),
            "distance": ks.distance,
            "p": ks.p,
            **_sizes(found, moved),
        },
    )


def _equivalent(narrow: Interval, wide: Interval) -> Verdict:
    """Two one-sided tests are one look at the interval of twice their error."""
    low, high = 0.5 - power.MARGIN, 0.5 + power.MARGIN
    if low < narrow.low and narrow.high < high:
        return "pass"
    return "fail" if wide.low > high or wide.high < low else "inconclusive"


def _sizes(found: Interval, moved: Interval) -> dict[str, float]:
    return {
        "auc": found.value,
        "auc_low": found.low,
        "auc_high": found.high,
        "shift_ms": moved.value,
        "shift_low_ms": moved.low,
        "shift_high_ms": moved.high,
    }


def _figures(hits: Sequence[float], misses: Sequence[float]) -> dict[str, float]:
    return {"hits": len(hits), "misses": len(misses)}


def _ms(seconds: Interval) -> Interval:
    return Interval(1e3 * seconds.value, 1e3 * seconds.low, 1e3 * seconds.high)


def all_ms(seconds: Sequence[float]) -> list[float]:
    """Milliseconds, to the microsecond."""
    return [round(1e3 * one, 3) for one in seconds]


def _name(arm: Arm) -> str:
    return f"{arm.who}_{'hit' if arm.hit else 'miss'}"


def _method(times: Times) -> str:
    failed = f", {times.failed} requests failed ({times.error})" if times.failed else ""
    return (
        f"Prompts of {PROMPT_TOKENS} random tokens of which {SHARED:.0%} are shared; time to the "
        "first token as the client sees it, arms shuffled, one probe at a time; "
        f"{times.asked} probes in {times.seconds:.0f} s{failed}. AUC: the probability that a "
        "probe of the victim's prompt is answered sooner than one of a new prompt. Shift: how much "
        "sooner (Hodges-Lehmann). Intervals are of 95 %."
    )
