"""Every command's help has an example that its own options accept; bad input is one line."""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from bench.cli import COMMANDS, main
from bench.commands import options as shared
from bench.commands.compare import recorded
from bench.commands.sweep import Step, _result
from bench.load.errors import BadLoad
from bench.measures import slo
from bench.measures.comparison import Better, Comparison
from bench.measures.search import RateSearch
from bench.measures.summary import Asked, summary
from bench.records import Record
from bench.reporting.files import write_run
from bench.result import RunResult


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module(f"bench.commands.{name}")
    # The audit is a command of its own, which is told where the deployment's file is.
    called, told = (("audit",), ("--config", "x")) if name == "audit" else (("bench", name), ())
    first, *words = shlex.split(command.EXAMPLE)
    assert (first, *words[: len(called)]) == ("kvferry", *called)
    parser = argparse.ArgumentParser()
    command.add(parser)
    parser.parse_args([*words[len(called) :], *told])
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert command.EXAMPLE in capsys.readouterr().out


def chosen(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    shared.add_target(parser)
    shared.add_load(parser)
    shared.add_run(parser)
    return parser.parse_args(words)


def test_without_a_word_it_is_open_loop_for_a_minute() -> None:
    workload = shared.workload_of(chosen())
    assert (workload.pacing, workload.seconds, workload.start) == ("open", 60.0, "warm")


def test_shared_prompts_are_primed_unless_told_otherwise() -> None:
    assert shared.workload_of(chosen("--hit-ratio", "0.3")).start == "primed"
    assert shared.workload_of(chosen("--hit-ratio", "0.3", "--start", "cold")).start == "cold"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "http://127.0.0.1:1", "--prompt", "many"), "a length is"),
        (("run", "http://127.0.0.1:1", "--users", "2"), "how many requests"),
        (("run", "localhost:1"), "give http://"),
        (("run", "http://127.0.0.1:1"), "give --model"),
        (("run", "http://127.0.0.1:1", "--body", "[]", "--model", "m"), "--body"),
        (("run", "http://127.0.0.1:1", "--timeout", "0", "--model", "m"), "--timeout"),
        (("run", "http://127.0.0.1:1", "--processes", "0", "--model", "m"), "--processes"),
        (("run", "http://127.0.0.1:1", "--out", "/proc/x", "--model", "m"), "cannot hold"),
        (("sweep", "http://127.0.0.1:1"), "give --slo"),
        (("sweep", "http://127.0.0.1:1", "--slo", "fast", "--model", "m"), "no SLO"),
        (("replay", "/no/such.jsonl", "http://127.0.0.1:1"), "/no/such.jsonl"),
        (("compare", "/no/a", "/no/b"), "no runs in it"),
        (("compare", "/no/a", "/no/b", "--pairs", "2"), "pairs at least"),
        (("report", "/no/run"), "/no/run"),
        (("stub", "--jitter", "-1"), "jitter"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    complaint = capsys.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1


def test_a_search_brackets_and_closes_in() -> None:
    capacity, search = 13.0, RateSearch(first=1.0, precision=0.05)
    while (rate := search.rate()) is not None:
        search.note(rate, kept=rate <= capacity)
    assert search.kept <= capacity < search.broken <= search.kept * 1.05
    assert search.tries < 12


def test_a_search_that_starts_too_high_comes_down() -> None:
    search = RateSearch(first=64.0)
    while (rate := search.rate()) is not None:
        search.note(rate, kept=rate <= 3.0)
    assert 2.8 < search.kept <= 3.0


def test_a_search_gives_up() -> None:
    search = RateSearch(first=1.0, most=5)
    while (rate := search.rate()) is not None:
        search.note(rate, kept=False)
    assert (search.tries, search.kept) == (5, 0.0)


@pytest.mark.parametrize(
    ("low", "high", "better", "finding"),
    [
        (1.1, 1.2, "lower", "worse"),
        (1.1, 1.2, "higher", "better"),
        (0.8, 0.9, "lower", "better"),
        (0.8, 0.9, "higher", "worse"),
        (0.9, 1.1, "lower", "no difference found"),
    ],
)
def test_which_way_is_worse(low: float, high: float, better: Better, finding: str) -> None:
    assert Comparison((low + high) / 2, low, high, 0.95, 10).finding(better) == finding


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLoad, match="no runs in it"):
        recorded(tmp_path, tmp_path)


def one_run(date: str, ttft: float, failing: int = 0, tokens: int = 2) -> RunResult:
    records = [
        Record(
            number=number,
            planned_prompt_tokens=8,
            planned_output_tokens=2,
            intended=float(number),
            sent=float(number),
            tokens=() if number < failing else (number + ttft, number + ttft + 0.1),
            finished=number + ttft + 0.1,
            error="status 503" if number < failing else "",
            prompt_tokens=8,
            output_tokens=tokens,
            cached_tokens=0,
        )
        for number in range(20)
    ]
    result = summary(records, Asked(open_loop=True, hit_ratio=0.0))
    return msgspec.structs.replace(result, environment={"date": date})


def kept(folder: Path, side: str, runs: Sequence[RunResult]) -> Path:
    for number, run in enumerate(runs):
        write_run(folder / side / f"{number}", run, [])
    return folder / side


def in_turns(folder: Path, **of_b: int) -> tuple[Path, Path]:
    dates = [f"2026-01-31T12:{minute:02}:00+00:00" for minute in range(16)]
    a = [one_run(date, 0.2 + n * 1e-4) for n, date in enumerate(dates[::2])]
    b = [one_run(date, 0.1 + n * 1e-4, **of_b) for n, date in enumerate(dates[1::2])]
    return kept(folder, "a", a), kept(folder, "b", b)


def compared(a: Path, b: Path, out: Path) -> int:
    return main(["compare", str(a), str(b), "--out", str(out)])


def test_recorded_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(*in_turns(tmp_path), tmp_path / "out") == 0
    assert "VALID: B is better than A" in capsys.readouterr().out


def test_a_server_that_fails_is_not_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(*in_turns(tmp_path, failing=6), tmp_path / "out") == 1
    assert "30.0% of B's" in capsys.readouterr().out


def test_a_server_that_says_less_is_not_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(*in_turns(tmp_path, tokens=1), tmp_path / "out") == 1
    assert "A's answers had 2.0 tokens" in capsys.readouterr().out


def test_runs_of_different_days_are_no_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = kept(tmp_path, "a", [one_run(f"2026-01-30T12:0{n}:00", 0.2) for n in range(8)])
    b = kept(tmp_path, "b", [one_run(f"2026-01-31T12:0{n}:00", 0.1) for n in range(8)])
    assert compared(a, b, tmp_path / "out") == 2
    assert "not made in turns" in capsys.readouterr().err


def test_a_run_without_a_partner_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = in_turns(tmp_path)
    shutil.rmtree(a / "3")
    assert compared(a, b, tmp_path / "out") == 2
    assert "without a partner of their name: 3" in capsys.readouterr().err


def test_a_client_that_was_the_limit_is_said() -> None:
    def step(rate: float, lag: float, kept: bool) -> Step:
        records = [
            Record(
                number=number,
                planned_prompt_tokens=8,
                planned_output_tokens=1,
                intended=number / rate,
                sent=number / rate + lag,
                tokens=(number / rate + lag + 0.02,),
                finished=number / rate + lag + 0.02,
                prompt_tokens=8,
                cached_tokens=0,
            )
            for number in range(1200)
        ]
        asked = Asked(open_loop=True, hit_ratio=0.0, slo=slo.parse("ttft=500"))
        return Step(rate, summary(records, asked), saturated=False, kept=kept)

    search = RateSearch(100.0)
    search.note(100.0, True)
    search.note(105.0, False)
    verdict = _result([step(100.0, 0.0, True), step(105.0, 2.0, False)], search, {}).verdict
    assert not verdict.valid
    assert "at 105 per second the client was late" in verdict.sentence


def test_credentials_in_an_address_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "http://user:secret@127.0.0.1:1"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_a_mix_of_recorded_tenants_takes_no_other_load() -> None:
    with pytest.raises(BadLoad, match="--mix takes"):
        shared.schedule_of(chosen("--mix", "folder", "--hit-ratio", "0.3"))


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(BadLoad):
        shared.schedule_of(chosen("--rate", "0"))
