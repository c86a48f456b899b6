"""How many requests a second does one core of each client make of the same server?

Rounds interleave the clients, and rates are compared within a round: the machine's other work then
hits all of them alike. Each client's rate is its own count of requests over its own first send to
last answer.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import msgspec

from bench.load.workload import Workload
from bench.selftest.bound import cores, finished, running_stub
from bench.selftest.client import probed
from bench.selftest.settings import Measured, PeerSettings, Say, SelftestFailed
from bench.statistics import median, round_ratios
from bench.stub.config import StubConfig

ADVICE = "guidellm, which the selftest compares with, is not installed: run `make peers`"
NO_VLLM = "vLLM, whose load generator the selftest compares with, is not installed"

_SECONDS = 600.0
_ENVIRON = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

# The `vllm` program asks for a distribution of that name, which vLLM's CPU build is not.
_VLLM = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


def guidellm_program() -> Path:
    """Where ``make peers`` puts it: an environment beside this one, for it needs another click."""
    return Path(sys.prefix).parent / ".venv-peers" / "bin" / "guidellm"


async def measure_peers(settings: PeerSettings, say: Say) -> Measured:
    """``rate_vs_vllm_bench`` and ``rate_vs_guidellm``: medians of the rounds' ratios; and rates.

    Raises SelftestFailed, at once where a peer is missing.
    """
    if importlib.util.find_spec("vllm") is None:
        raise SelftestFailed(NO_VLLM)
    if not settings.guidellm.exists():
        raise SelftestFailed(ADVICE)
    rates: dict[str, dict[int, float]] = {name: {} for name in _CLIENTS}
    source = random.Random(settings.seed)
    for number in range(1, settings.rounds + 1):
        for name in source.sample(tuple(_CLIENTS), len(_CLIENTS)):
            rate = await _CLIENTS[name](settings)
            rates[name][number] = rate
            say(f"round {number} of {settings.rounds}: {name} {rate:.0f} requests/s")
    ours = rates["kvferry"]
    metrics = {f"rate_{name}": median(list(told.values())) for name, told in rates.items()}
    for name in ("vllm_bench", "guidellm"):
        metrics[f"rate_vs_{name}"] = median(list(round_ratios(ours, rates[name]).values()))
    chosen = {
        **asdict(settings),
        "tokenizer": settings.tokenizer.name,
        "guidellm": settings.guidellm.name,
        "cores": list(cores()),
        "rates": {name: list(told.values()) for name, told in rates.items()},
    }
    return Measured(metrics, chosen)


async def _kvferry(settings: PeerSettings) -> float:
    workload = Workload(
        pacing="users",
        users=settings.concurrency,
        requests=settings.requests["kvferry"],
        prompt=str(settings.prompt_tokens),
        output=str(settings.output_tokens),
        start="cold",
        seed=settings.seed,
    )
    told = await probed(StubConfig(itl_ms=settings.itl_ms), workload, warm=0)
    span = max(one.finished for one in told) - min(one.sent for one in told)
    return len(told) / span


async def _vllm_bench(settings: PeerSettings) -> float:
    count = settings.requests["vllm_bench"]
    options = {
        "backend": "openai",
        "endpoint": "/v1/completions",
        "model": "stub",
        "tokenizer": settings.tokenizer,
        "dataset-name": "random",
        "random-input-len": settings.prompt_tokens,
        "random-output-len": settings.output_tokens,
        "random-range-ratio": 0,
        "num-prompts": count,
        "max-concurrency": settings.concurrency,
        "seed": settings.seed,
        "result-filename": "vllm.json",
    }
    with tempfile.TemporaryDirectory(prefix="kvferry-selftest-") as name:
        folder = Path(name)
        command = [sys.executable, "-c", _VLLM, "--save-result", "--disable-tqdm"]
        command += [f"--{option}={value}" for option, value in options.items()]
        async with running_stub(StubConfig(itl_ms=settings.itl_ms)) as base:
            command += [f"--base-url={base}", f"--result-dir={folder}"]
            await finished("vllm-bench", command, _ENVIRON, folder, _SECONDS)
        told = msgspec.json.decode((folder / "vllm.json").read_bytes(), type=_VllmResult)
    return _rate("vllm bench serve", told.completed, count, told.duration)


async def _guidellm(settings: PeerSettings) -> float:
    count = settings.requests["guidellm"]
    with tempfile.TemporaryDirectory(prefix="kvferry-selftest-") as name:
        folder = Path(name)
        async with running_stub(StubConfig(itl_ms=settings.itl_ms)) as base:
            groups: dict[str, dict[str, object]] = {
                "backend": {
                    "kind": "openai_http",
                    "target": base,
                    "model": "stub",
                    "request_format": "/v1/completions",
                },
                "profile": {"kind": "concurrent", "streams": settings.concurrency},
                "constraint": {"kind": "max_requests", "count": count},
                "data": {
                    "kind": "synthetic_text",
                    "prompt_tokens": settings.prompt_tokens,
                    "output_tokens": settings.output_tokens,
                },
                "tokenizer": {"kind": "hf_auto", "model": settings.tokenizer},
                "output": {"kind": "json", "path": folder / "guidellm.json"},
            }
            command = [str(settings.guidellm), "run", "--disable-console"]
            for group, values in groups.items():
                joined = ",".join(f"{key}={value}" for key, value in values.items())
                command += [f"--{group}", joined]
            await finished("guidellm", command, _ENVIRON, folder, _SECONDS)
        told = msgspec.json.decode((folder / "guidellm.json").read_bytes(), type=_GuideResult)
    requests = told.benchmarks[0].requests.successful
    begin = min(one.request_start_time for one in requests)
    end = max(one.request_end_time for one in requests)
    return _rate("guidellm", len(requests), count, end - begin)


class _VllmResult(msgspec.Struct):
    completed: int
    duration: float


class _GuideRequest(msgspec.Struct):
    request_start_time: float
    request_end_time: float


class _GuideRequests(msgspec.Struct):
    successful: list[_GuideRequest]


class _GuideBenchmark(msgspec.Struct):
    requests: _GuideRequests


class _GuideResult(msgspec.Struct):
    benchmarks: list[_GuideBenchmark]


def _rate(name: str, completed: int, count: int, seconds: float) -> float:
    if completed < count or seconds <= 0:
        raise SelftestFailed(f"{name}: {completed} of {count} requests in {seconds:.3g} s")
    return completed / seconds


_CLIENTS = {"kvferry": _kvferry, "vllm_bench": _vllm_bench, "guidellm": _guidellm}
