"""The commands as a user types them, against the stub. Nothing here depends on how fast it is."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.timeout(120)
BENCH = (sys.executable, "-m", "deploy.cli", "bench")
SECONDS = 60.0
ENDLESS = ("--rate", "20", "--seconds", "600")
LOADED = """\
import sys, bench.cli
bench.cli.main(["run", "x"])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@contextmanager
def stub(*words: str) -> Iterator[str]:
    with subprocess.Popen(
        (*BENCH, "stub", "--port", "0", *words), stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().strip()
        finally:
            running.terminate()


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*BENCH, *map(str, words)), capture_output=True, text=True, timeout=SECONDS, check=False
    )


@contextmanager
def endless(url: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A run that is on and would go on for minutes."""
    with subprocess.Popen(
        (*BENCH, "run", url, *ENDLESS, *map(str, words)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        # The first progress line says that the load is on.
        assert running.stderr is not None
        running.stderr.readline()
        yield running


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def only_late(result: dict[str, Any]) -> bool:
    """A busy test machine may make the client late, which the verdict then says, rightly."""
    reasons = result["verdict"]["reasons"]
    return all("client was late" in reason for reason in reasons)


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    with stub("--ttft-ms", "5", "--itl-ms", "1", "--cache-blocks", "100000") as url:
        ended = bench(
            *("run", url, "--rate", 40, "--requests", 40, "--prompt", 320, "--output", 6),
            *("--hit-ratio", 0.5, "--tenants", 2, "--key", "one", "--key", "two"),
            *("--slo", "ttft=60000", "--out", tmp_path / "run", "--json", tmp_path / "out.json"),
        )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert only_late(result), ended.stdout
    assert result["metrics"]["requests"] == 40
    assert result["metrics"]["errors"] == 0
    assert result["metrics"]["slo_attainment"] == 1
    assert abs(result["metrics"]["hit_ratio"] - 0.5) <= 0.02
    assert result["settings"]["salt"]
    assert result["settings"]["keys"] == 2
    assert "one" not in json.dumps(result["settings"].get("keys"))
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == result["metrics"]
    requests = lines(tmp_path / "run" / "requests.jsonl")
    assert [request["number"] for request in requests] == list(range(40))
    assert all(len(request["tokens"]) == 6 for request in requests)
    table = list(csv.reader(io.StringIO((tmp_path / "run" / "summary.csv").read_text())))
    assert "ttft" in {row[0] for row in table}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page
    assert "TTFT" in ended.stdout

    again = bench("report", tmp_path / "run", "--out", tmp_path / "again")
    assert again.returncode == 0
    assert (tmp_path / "again" / "report.html").read_text() == page


def test_two_processes_share_a_load(tmp_path: Path) -> None:
    with stub("--ttft-ms", "5") as url:
        bench(
            *("run", url, "--rate", 50, "--requests", 41, "--prompt", 8, "--output", 2),
            *("--processes", 2, "--turns", 2, "--out", tmp_path),
        )
    requests = lines(tmp_path / "requests.jsonl")
    assert [request["number"] for request in requests] == list(range(41))
    assert not [request for request in requests if request.get("error")]


def test_a_rerun_has_the_same_schedule_and_other_prompts(tmp_path: Path) -> None:
    load = ("--users", 2, "--requests", 6, "--prompt", 64, "--output", 2)
    with stub("--cache-blocks", "1000") as url:
        for name in "ab":
            bench("run", url, *load, "--out", tmp_path / name)
    a, b = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert a["schedule_sha256"] == b["schedule_sha256"]
    assert a["settings"]["salt"] != b["settings"]["salt"]
    assert b["metrics"]["hit_ratio"] == 0  # not warm by accident


def test_errors_are_told_first_and_are_in_no_latency(tmp_path: Path) -> None:
    with stub("--ttft-ms", "2", "--error-every", "4") as url:
        ended = bench(
            *("run", url, "--users", 1, "--requests", 20, "--start", "cold", "--prompt", 8),
            *("--output", 2, "--out", tmp_path),
        )
    assert ended.returncode == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["errors"] == 5
    assert result["latencies"]["ttft"]["count"] == 15
    assert "5 of 20 requests failed" in ended.stdout


def test_ctrl_c_ends_a_run_with_what_there_is(tmp_path: Path) -> None:
    with (
        # So slow that requests are under way whenever the signal comes.
        stub("--ttft-ms", "2000") as url,
        endless(url, "--start", "cold", "--out", tmp_path) as running,
    ):
        children = psutil.Process(running.pid).children()
        running.send_signal(signal.SIGINT)
        assert running.wait(SECONDS) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["verdict"]["valid"]
    assert "stopped before its end" in result["verdict"]["sentence"]
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_killed_run_leaves_no_process_and_no_noise(tmp_path: Path) -> None:
    with (
        stub("--ttft-ms", "5") as url,
        endless(url, "--processes", 2, "--out", tmp_path) as running,
    ):
        children = psutil.Process(running.pid).children()
        running.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()


def test_a_load_process_that_dies_loses_its_own_requests_only(tmp_path: Path) -> None:
    with (
        stub("--ttft-ms", "5") as url,
        endless(url, "--processes", 2, "--out", tmp_path) as running,
    ):
        psutil.Process(running.pid).children()[0].kill()
        assert running.wait(SECONDS) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert "a load process ended before its time" in result["verdict"]["sentence"]


def test_a_sweep_finds_what_one_slot_can_serve(tmp_path: Path) -> None:
    # 20 ms each and one at a time: 50 per second at the very most.
    with stub("--ttft-ms", "20", "--slots", "1") as url:
        ended = bench(
            *("sweep", url, "--slo", "ttft=400", "--rate", 4, "--seconds", 3, "--prompt", 8),
            *("--output", 1, "--precision", 0.5, "--attainment", 0.9, "--out", tmp_path),
        )
    result = json.loads((tmp_path / "result.json").read_text())
    tried = [step["rate"] for step in result["detail"]["steps"]]
    assert result["metrics"]["max_rate"] < 60, ended.stdout
    assert max(tried) > result["metrics"]["max_rate"]
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_a_slower_server_is_found_slower(tmp_path: Path) -> None:
    load = ("--users", 1, "--requests", 4, "--prompt", 8, "--output", 2, "--pairs", 8)
    with stub("--ttft-ms", "10") as fast, stub("--ttft-ms", "40") as slow:
        ended = bench("compare", fast, slow, *load, "--out", tmp_path / "pairs")
        assert ended.returncode == 1, ended.stderr
    result = json.loads((tmp_path / "pairs" / "result.json").read_text())
    assert 1 < result["metrics"]["ratio_p50_ttft_ms"] < 5
    assert "B is worse than A" in ended.stdout
    recorded = bench(
        "compare", tmp_path / "pairs" / "b", tmp_path / "pairs" / "a", "--out", tmp_path / "back"
    )
    assert recorded.returncode == 0
    assert "B is better than A" in recorded.stdout


def test_unlike_runs_are_compared_by_force_only(tmp_path: Path) -> None:
    with stub() as url:
        for name, prompt in (("a", 8), ("b", 16)):
            bench(
                *("run", url, "--users", 1, "--requests", 2, "--prompt", prompt),
                *("--output", 1, "--out", tmp_path / name / "0"),
            )
    refused = bench("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    forced = bench("compare", tmp_path / "a", tmp_path / "b", "--force", "--out", tmp_path / "c")
    assert "there are not 8 pairs" in forced.stderr


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "".join(
            json.dumps(
                {
                    "timestamp": 20 * number,
                    "input_length": 1024 + number,
                    "output_length": 2,
                    "hash_ids": [0, number % 3 + 1, 100 + number],
                }
            )
            + "\n"
            for number in range(12)
        )
    )
    with stub("--cache-blocks", "100000") as url:
        ended = bench("replay", trace, url, "--scale", 0.5, "--out", tmp_path / "run")
    requests = lines(tmp_path / "run" / "requests.jsonl")
    assert len(requests) == 12, ended.stderr
    assert requests[0]["prompt_tokens"] == 512
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["hit_ratio"] > 0.5


def test_no_heavy_library_is_loaded() -> None:
    """No heavy library is loaded, and that is what takes time."""
    loaded = subprocess.run(
        (
            sys.executable,
            "-c",
            LOADED,
        ),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"numpy", "torch", "vllm", "lmcache", "fastapi", "aiohttp", "transformers", "zmq"}
    assert not heavy & set(loaded)
