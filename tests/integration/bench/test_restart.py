"""The restart benchmark in real processes: a proxy is killed under load, in little time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import environment
from bench.cli import main

pytestmark = pytest.mark.skipif(
    not (environment.default_model() / "tokenizer.json").is_file(), reason="no default model"
)

LITTLE = [
    *("--rounds", "1", "--workers", "4", "--clients", "8", "--think-ms", "50"),
    *("--conversations", "20", "--blocks", "900", "--warm", "4", "--before", "3", "--after", "8"),
]


def test_a_killed_proxy_steers_as_well_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "restart.json"
    main(["restart", *LITTLE, "--out", str(tmp_path / "out"), "--json", str(file)])
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["restart_seconds_to_95"] < 8
    assert metrics["hit_ratio_before"] > 0.5
    assert metrics["hit_ratio_blind"] < metrics["hit_ratio_before"]
    assert metrics["refused_and_asked_again"] > 0
    assert "restart_seconds_to_95" in capsys.readouterr().out
