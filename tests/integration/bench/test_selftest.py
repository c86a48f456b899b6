"""The audit itself, short: its processes, its figures, what it says where a peer is missing."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bench.load.workload import Workload
from bench.selftest.client import measure_client, probed
from bench.selftest.peers import ADVICE
from bench.selftest.peers import measure_peers as peers
from bench.selftest.settings import ClientSettings, PeerSettings, SelftestFailed
from bench.stub import StubConfig

SHORT = ClientSettings(
    lag_rate=50,
    lag_seconds=1,
    bias_streams=5,
    bias_itl_ms=10,
    bias_seconds=1,
    bias_settling_seconds=0.2,
)


def test_lag_and_bias_are_measured_between_processes() -> None:
    said: list[str] = []
    measured = asyncio.run(measure_client(SHORT, said.append))
    metrics = measured.metrics
    assert len(said) == 2
    # Nothing is sent early, and no token arrives before the stub wrote it.
    assert 0 <= metrics["lag_p50_ms"] <= metrics["lag_p99_ms"] <= metrics["lag_max_ms"]
    assert 0 < metrics["bias_p50_ms"] <= metrics["bias_p99_ms"] <= metrics["bias_max_ms"]
    assert 20 < metrics["lag_requests"] < 100
    assert 5 <= metrics["bias_requests"] < 60
    assert measured.settings["bias_rate"] == pytest.approx(25.0)
    assert measured.settings["seed"] == SHORT.seed


def test_what_the_stub_really_took_is_known_to_the_probe() -> None:
    workload = Workload(pacing="users", users=4, requests=12, prompt="8", output="2", start="cold")
    told = asyncio.run(probed(StubConfig(ttft_ms=30), workload, warm=4))
    assert len(told) == 12
    assert all(one.true_ttft >= 0.029 for one in told)
    assert all(one.first_token - one.sent >= one.true_ttft for one in told)


def test_a_failing_request_fails_the_audit() -> None:
    workload = Workload(pacing="users", users=1, requests=4, prompt="8", output="2", start="cold")
    with pytest.raises(SelftestFailed, match="1 of 4 requests failed"):
        asyncio.run(probed(StubConfig(error_every=4), workload, warm=0))


def test_a_missing_peer_stops_with_advice(tmp_path: Path) -> None:
    settings = PeerSettings(tokenizer=tmp_path, guidellm=tmp_path / "guidellm")
    with pytest.raises(SelftestFailed) as raised:
        asyncio.run(peers(replace(settings, rounds=1), lambda line: None))
    assert str(raised.value) == ADVICE
