"""``calibrate`` and ``simulate`` as a user types them. Nothing here depends on how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bench.test_commands_against_stub import bench, stub

pytestmark = pytest.mark.timeout(120)
TRACES = Path(__file__).parents[2] / "data" / "traces"
TRACE = TRACES / "mooncake_conversation.jsonl"


def simulated(folder: Path, *words: object) -> tuple[int, dict[str, Any]]:
    out = folder / "simulated.json"
    done = bench("simulate", "--trace", TRACE, "--out", folder / "out", "--json", out, *words)
    assert out.exists(), done.stderr
    assert (folder / "out" / "report.html").exists()
    return done.returncode, json.loads(out.read_text())


def test_an_engine_is_measured_and_then_simulated(tmp_path: Path) -> None:
    engine = tmp_path / "engine.json"
    slow = ("--ttft-ms", "20", "--prefill-us", "500", "--cache-blocks", "9999")
    with stub(*slow) as url:
        asked = ("--longest", "512", "--rounds", "1", "--out", tmp_path / "c", "--json", engine)
        done = bench("calibrate", url, *asked)
    assert engine.exists(), done.stderr
    result = json.loads(engine.read_text())
    assert result["metrics"]["token_us"] > 300  # a busy machine is late, never early
    assert {held > 0 for _, held, _ in result["detail"]["samples"]} == {True, False}
    code, found = simulated(tmp_path, "--engine", engine, "--workers", "2")
    assert code == (0 if found["verdict"]["valid"] else 1)
    assert found["settings"]["engine"] == result["metrics"]
    metrics = found["metrics"]
    assert metrics["cross_tenant_hits"] == 0
    assert 0 < metrics["hit_ratio"] <= metrics["oracle_hit_ratio"]
    assert metrics["ttft_p99_vs_no_queue"] >= 1
    assert {"ttft_p50_vs_best_other", "round_robin_hit_ratio", "imbalance"} <= set(metrics)


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one, other = (simulated(tmp_path / at, "--workers", "3", "--lost", "0.1")[1] for at in "ab")
    assert one["metrics"] == other["metrics"]
    assert "hit_ratio_vs_undisturbed" in one["metrics"]


def test_tenants_and_placement_alone(tmp_path: Path) -> None:
    _, found = simulated(tmp_path, "--untimed", "--tenants", "4", "--policy", "kvferry")
    assert "hit_ratio_vs_unscoped" in found["metrics"]
    assert not any(name.startswith("ttft") for name in found["metrics"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--trace", TRACES / "azure_2023_conv.csv"), "names no blocks"),
        (("--trace", "nowhere.jsonl"), "No such file"),
        (("--trace", TRACE, "--engine", TRACE), "no result of `kvferry bench calibrate`"),
        (("--trace", TRACE, "--workers", "0"), "1 at least"),
        (("--trace", TRACE, "--utilization", "1.5"), "between 0 and 1"),
        (("--trace", TRACE, "--lost", "0.1", "--policy", "least-work"), "alone"),
        (("--trace", TRACE, "--untimed", "--restart-every", "5"), "not untimed"),
    ],
)
def test_bad_input_is_one_line(words: tuple[object, ...], told: str, tmp_path: Path) -> None:
    done = bench("simulate", *words, "--out", tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
