"""Does the client keep its schedule, and does it add anything to what it measures?"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from bench.load.workload import Workload
from bench.selftest.bound import cores, finished, running_stub
from bench.selftest.probe import Job, Probed, outcome
from bench.selftest.settings import ClientSettings, Measured, Say, SelftestFailed
from bench.statistics import percentile
from bench.stub.config import StubConfig

_EXTRA_SECONDS = 60.0


async def measure_client(settings: ClientSettings, say: Say) -> Measured:
    """``lag_p99_ms``, ``bias_p50_ms`` and ``bias_p99_ms``, with others of their kind.

    Raises SelftestFailed.
    """
    say(f"schedule lag: {settings.lag_rate:.0f} requests/s for {settings.lag_seconds:.0f} s")
    lags = await _lags(settings)
    say(f"bias: {settings.bias_streams} streams at once for {settings.bias_seconds:.0f} s")
    biases = await _biases(settings)
    metrics = {
        "lag_p50_ms": percentile(lags, 50),
        "lag_p99_ms": percentile(lags, 99),
        "lag_max_ms": max(lags),
        "lag_requests": float(len(lags)),
        "bias_p50_ms": percentile(biases, 50),
        "bias_p99_ms": percentile(biases, 99),
        "bias_max_ms": max(biases),
        "bias_requests": float(len(biases)),
    }
    chosen = {**asdict(settings), "bias_rate": settings.bias_rate, "cores": list(cores())}
    return Measured(metrics, chosen)


async def probed(config: StubConfig, workload: Workload, warm: int) -> list[Probed]:
    """Put ``workload`` on a stub of its own by a client of its own. Raises SelftestFailed."""
    async with running_stub(config) as base:
        with tempfile.TemporaryDirectory(prefix="kvferry-selftest-") as name:
            job_file = Path(name) / "job.json"
            job_file.write_bytes(msgspec.json.encode(Job(base=base, workload=workload, warm=warm)))
            seconds = (workload.seconds or 0.0) + _EXTRA_SECONDS
            command = [sys.executable, "-m", "bench.selftest.probe", str(job_file)]
            await finished("kvferry", command, {}, Path(name), seconds)
            told = msgspec.json.decode(outcome(job_file).read_bytes(), type=list[Probed])
    failures = [one.error for one in told if one.error]
    if failures or not told:
        raise SelftestFailed(f"{len(failures)} of {len(told)} requests failed: {failures[:1]}")
    return told


async def _lags(settings: ClientSettings) -> Sequence[float]:
    workload = Workload(
        rate=settings.lag_rate,
        seconds=settings.lag_seconds,
        prompt=str(settings.prompt_tokens),
        output=str(settings.lag_output_tokens),
        start="cold",
        seed=settings.seed,
    )
    told = await probed(StubConfig(itl_ms=settings.lag_itl_ms), workload, warm=16)
    return [(one.sent - one.intended) * 1e3 for one in told]


async def _biases(settings: ClientSettings) -> Sequence[float]:
    workload = Workload(
        rate=settings.bias_rate,
        seconds=settings.bias_settling_seconds + settings.bias_seconds,
        prompt=str(settings.prompt_tokens),
        output=str(settings.bias_output_tokens),
        start="cold",
        seed=settings.seed,
    )
    config = StubConfig(ttft_ms=settings.bias_ttft_ms, itl_ms=settings.bias_itl_ms)
    # More connections than streams: a Poisson load is at times above its mean.
    told = await probed(config, workload, warm=settings.bias_streams * 5 // 4)
    return [
        (one.first_token - one.sent - one.true_ttft) * 1e3
        for one in told
        if one.intended >= settings.bias_settling_seconds
    ]
