"""Does ``compare`` cry wolf, and does it miss one?

Pairs of runs are recorded as a comparison has them: of two stubs that are alike, where any
difference found is a false alarm, and of two of which one is a tenth slower. Comparisons are then
drawn from the pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.driving.fleet import Fleet
from bench.driving.run import RunPlan, carry_out
from bench.driving.target import Target
from bench.load.workload import Workload, build
from bench.measures.comparison import compare
from bench.selftest.bound import running_stub
from bench.selftest.settings import Measured, Say, SelftestFailed
from bench.stub.config import StubConfig


@dataclass(frozen=True)
class CalibrationSettings:
    """``alike`` and ``unlike`` pairs of runs are recorded, each run of ``requests``;
    ``comparisons`` of ``pairs`` are drawn from each. Delays vary by ``jitter`` (sigma of a
    lognormal factor)."""

    alike: int = 60
    unlike: int = 20
    requests: int = 50
    rate: float = 100.0
    ttft_ms: float = 40.0
    slowdown: float = 1.10
    jitter: float = 0.3
    comparisons: int = 200
    pairs: int = 10
    seed: int = 0


async def measure_calibration(settings: CalibrationSettings, say: Say) -> Measured:
    """``false_alarms`` and ``detected``, as fractions. Raises SelftestFailed."""
    plain = StubConfig(ttft_ms=settings.ttft_ms, jitter=settings.jitter)
    slower = StubConfig(ttft_ms=settings.ttft_ms * settings.slowdown, jitter=settings.jitter)
    say(f"calibration: {settings.alike} pairs of runs of two stubs that are alike")
    alike = await _recorded(settings, settings.alike, plain)
    say(f"calibration: {settings.unlike} pairs, one a tenth slower")
    unlike = await _recorded(settings, settings.unlike, slower)
    metrics = {
        "false_alarms": false_alarms(alike, settings),
        "detected": detected(unlike, settings),
    }
    told = {"alike": alike, "unlike": unlike}
    return Measured(metrics, {**asdict(settings), "p50_ttft_ms": told})


def false_alarms(pairs: Sequence[tuple[float, float]], settings: CalibrationSettings) -> float:
    """Fraction of comparisons of A with itself that find a difference.

    ``pairs`` are in the order a real comparison has them, so what being second costs is in them.
    """
    source = random.Random(f"{settings.seed}/alarms")
    alarms = sum(
        _finding(source.sample(pairs, settings.pairs), number) != "no difference found"
        for number in range(settings.comparisons)
    )
    return alarms / settings.comparisons


def detected(pairs: Sequence[tuple[float, float]], settings: CalibrationSettings) -> float:
    """Fraction of comparisons of A with a slower B that find B worse."""
    source = random.Random(f"{settings.seed}/detected")
    found = sum(
        _finding(source.sample(pairs, settings.pairs), number) == "worse"
        for number in range(settings.comparisons)
    )
    return found / settings.comparisons


def _finding(pairs: Sequence[tuple[float, float]], seed: int) -> str:
    return compare([a for a, _ in pairs], [b for _, b in pairs], seed=seed).finding()


async def _recorded(
    settings: CalibrationSettings, count: int, other: StubConfig
) -> list[tuple[float, float]]:
    """Median TTFTs, ms, of ``count`` pairs of runs, of the plain stub and of ``other``: ABBA."""
    plain = StubConfig(ttft_ms=settings.ttft_ms, jitter=settings.jitter)
    pairs = []
    async with running_stub(plain) as of_a, running_stub(other) as of_b, Fleet() as fleet:
        bases = {"a": of_a, "b": of_b}
        for number in range(count):
            taken = {}
            for name in "ab" if number % 2 == 0 else "ba":
                taken[name] = await _median(settings, bases[name], fleet, f"{name}{number}")
            pairs.append((taken["a"], taken["b"]))
    return pairs


async def _median(settings: CalibrationSettings, base: str, fleet: Fleet, salt: str) -> float:
    workload = Workload(
        rate=settings.rate,
        requests=settings.requests,
        prompt="16",
        output="1",
        start="cold",
        seed=settings.seed,
    )
    target = Target(base=base, model="stub", api="completions")
    plan = RunPlan(target=target, schedule=build(workload), salt=f"{settings.seed}/{salt}")
    result, _ = await carry_out(plan, fleet, lambda *_: None)
    if result.errors:
        raise SelftestFailed(f"requests to the stub failed: {dict(result.errors)}")
    return result.metrics["p50_ttft_ms"]
