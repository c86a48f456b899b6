"""The router benchmark in real processes: our proxy, a peer, stub workers, tiny amounts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import environment
from bench.cli import main
from bench.routing import systems
from bench.routing.report import BOUNDS
from bench.routing.systems import VllmRouter

STAND_IN = Path(__file__).with_name("stand_in_router.py")
TINY = [
    *("--rounds", "1", "--seconds", "0.3", "--requests", "3", "--novel", "1"),
    *("--concurrency", "2", "--workers", "4", "--many", "6", "--long", "20000"),
]
BENCH = ["router", *TINY]

pytestmark = pytest.mark.skipif(
    not (environment.default_model() / "tokenizer.json").is_file(), reason="no default model"
)


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    if systems.peer_version() is None:
        theirs = VllmRouter._command
        monkeypatch.setattr(systems, "peer_version", lambda: "stand-in")
        monkeypatch.setattr(
            VllmRouter,
            "_command",
            lambda self: [sys.executable, str(STAND_IN), *theirs(self)[3:]],
        )


@pytest.mark.usefixtures("peer")
def test_every_bound_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "router.json"
    assert main([*BENCH, "--out", str(tmp_path / "out"), "--json", str(file)]) == 1
    result = json.loads(file.read_text())
    assert {bound.metric for bound in BOUNDS} <= result["metrics"].keys()
    assert all(result["metrics"][f"{name}_rps_1k"] > 0 for name in ("kvferry", "round_robin"))
    assert not result["verdict"]["valid"]  # of so little
    shown = capsys.readouterr().out
    assert "vllm-router, cache_aware" in shown


def test_without_the_peer_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(systems, "peer_version", lambda: None)
    assert main([*BENCH, "--many", "0", "--out", str(tmp_path)]) == 1
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert "novel_220k_over_tokenize_ms" in metrics
    assert "rps_1k_vs_cache_aware" not in metrics
    told = capsys.readouterr()
    assert "make peers" in told.out + told.err
