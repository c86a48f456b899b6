"""What isolation costs, in real processes: both builds of the proxy, stub workers, tiny amounts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import environment
from bench.cli import main
from bench.isolation.report import CPU, HITS

TINY = [
    *("--rounds", "1", "--turns", "1", "--seconds", "0.3", "--concurrency", "2"),
    *("--workers", "2", "--long", "20000", "--replayed", "60", "--blocks", "200"),
]


@pytest.mark.skipif(
    not (environment.default_model() / "tokenizer.json").is_file(), reason="no default model"
)
def test_every_bound_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "isolation.json"
    command = ["isolation", *TINY, "--out", str(tmp_path / "out"), "--json", str(file)]
    assert main(command) == 1
    result = json.loads(file.read_text())
    wanted = {bound.metric for bound in (*CPU.values(), *HITS.values())}
    assert wanted <= result["metrics"].keys()
    assert result["metrics"]["alone_proxy_us_1k"] > 0
    assert result["detail"]["hits"][0]["ours"] > 0
    assert not result["verdict"]["valid"]  # of so little
