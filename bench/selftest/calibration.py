"""Does ``compare`` cry wolf, and does it miss one?

Runs against two stubs, one a tenth slower, are recorded in turns; comparisons are then drawn from
them, of A with A (where any difference found is a false alarm) and of A with B.
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
    """``runs`` of each stub are recorded, of ``requests`` each; ``comparisons`` of ``pairs`` runs
    are drawn. Delays vary by ``jitter`` (sigma, lognormal) from request to request."""

    runs: int = 40
    requests: int = 60
    rate: float = 60.0
    ttft_ms: float = 40.0
    slowdown: float = 1.10
    jitter: float = 0.3
    comparisons: int = 200
    pairs: int = 10
    seed: int = 0


async def measure_calibration(settings: CalibrationSettings, say: Say) -> Measured:
    """``false_alarms`` and ``detected``, as fractions. Raises SelftestFailed."""
    say(f"calibration: {settings.runs} runs of each of two stubs")
    a, b = await _recorded(settings)
    metrics = {
        "false_alarms": false_alarms(a, settings),
        "detected": detected(a, b, settings),
    }
    return Measured(metrics, {**asdict(settings), "p50_ttft_ms": {"a": a, "b": b}})


def false_alarms(runs: Sequence[float], settings: CalibrationSettings) -> float:
    """Fraction of comparisons of A with itself that find a difference.

    Neighbours make a pair, as in a real comparison; which of them is called B is drawn.
    """
    source = random.Random(f"{settings.seed}/alarms")
    neighbours = list(zip(runs[::2], runs[1::2], strict=False))
    alarms = 0
    for number in range(settings.comparisons):
        drawn = [
            pair if source.random() < 0.5 else pair[::-1]
            for pair in source.sample(neighbours, settings.pairs)
        ]
        alarms += _finding(drawn, number) != "no difference shown"
    return alarms / settings.comparisons


def detected(a: Sequence[float], b: Sequence[float], settings: CalibrationSettings) -> float:
    """Fraction of comparisons of A with B that find B slower."""
    source = random.Random(f"{settings.seed}/detected")
    both = list(zip(a, b, strict=True))
    found = sum(
        _finding(source.sample(both, settings.pairs), number) == "slower"
        for number in range(settings.comparisons)
    )
    return found / settings.comparisons


def _finding(pairs: Sequence[tuple[float, float]], seed: int) -> str:
    return compare([a for a, _ in pairs], [b for _, b in pairs], seed=seed).finding


async def _recorded(settings: CalibrationSettings) -> tuple[list[float], list[float]]:
    """Median TTFT, ms, of every run of the plain stub and of the slower one."""
    fast = StubConfig(ttft_ms=settings.ttft_ms, jitter=settings.jitter)
    slow = StubConfig(ttft_ms=settings.ttft_ms * settings.slowdown, jitter=settings.jitter)
    found: dict[str, list[float]] = {"a": [], "b": []}
    async with running_stub(fast) as of_a, running_stub(slow) as of_b, Fleet() as fleet:
        bases = {"a": of_a, "b": of_b}
        for number in range(settings.runs):
            for name in ("ab", "ba")[number % 2]:
                found[name].append(await _median(settings, bases[name], fleet, f"{name}{number}"))
    return found["a"], found["b"]


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
