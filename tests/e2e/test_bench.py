"""The harness against the product: what a performance engineer does first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records import STAGES
from tests.support.live_cluster import KEYS, LiveCluster

pytestmark = pytest.mark.engine

OUTPUTS = {"result.json", "requests.jsonl", "summary.csv", "report.html"}


def test_a_run_against_kvferry_tells_hits_tiers_and_stages(
    cluster: LiveCluster, tmp_path: Path
) -> None:
    subprocess.run(
        (
            *(sys.executable, "-m", "deploy.cli", "bench", "run", cluster.base_url),
            *("--key", KEYS["red"], "--key", KEYS["blue"], "--tenants", "2", "--block-size", "32"),
            *("--users", "1", "--requests", "8", "--prompt", "320", "--output", "4"),
            *("--hit-ratio", "0.5", "--prefixes", "1", "--out", str(tmp_path)),
        ),
        capture_output=True,
        check=True,
        timeout=240,
    )
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["verdict"]["valid"]
    assert result["hits"]["achieved"] == pytest.approx(result["hits"]["intended"], abs=0.02)
    assert result["hits"]["by_tier"]["gpu"] == pytest.approx(result["hits"]["achieved"], abs=0.01)
    assert {tenant["tenant"] for tenant in result["tenants"]} == {"tenant-0", "tenant-1"}
    assert set(result["stages"]) >= set(STAGES[:3])
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    for request in requests:
        # The server's stages lie within what the client saw, connection and network included.
        seen = (request["tokens"][0] - request["sent"]) * 1000
        assert 0 < sum(request["stages"].values()) <= seen + 1
    page = (tmp_path / "report.html").read_text()
    assert "hand-over" in page or "prefill" in page
