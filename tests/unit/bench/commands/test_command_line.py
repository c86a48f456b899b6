"""Every command's help has an example that its own options accept; bad input is one line."""

from __future__ import annotations

import argparse
import importlib
import shlex
from pathlib import Path

import pytest

from bench.cli import COMMANDS, main
from bench.commands import options as shared
from bench.commands.compare import recorded, verdict_of
from bench.load.errors import BadLoad
from bench.measures.comparison import Comparison
from bench.measures.search import RateSearch


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module(f"bench.commands.{name}")
    words = shlex.split(command.EXAMPLE)
    assert words[:3] == ["kvferry", "bench", name]
    parser = argparse.ArgumentParser()
    command.add(parser)
    parser.parse_args(words[3:])
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
    ("low", "high", "better", "verdict"),
    [
        (1.1, 1.2, "lower", "worse"),
        (1.1, 1.2, "higher", "better"),
        (0.8, 0.9, "lower", "better"),
        (0.8, 0.9, "higher", "worse"),
        (0.9, 1.1, "lower", "no"),
    ],
)
def test_which_way_is_worse(low: float, high: float, better: str, verdict: str) -> None:
    comparison = Comparison((low + high) / 2, low, high, 0.95, 10)
    assert verdict_of(comparison, better) == verdict  # type: ignore[arg-type]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLoad, match="no runs in it"):
        recorded(tmp_path)


def test_a_mix_of_recorded_tenants_takes_no_other_load() -> None:
    with pytest.raises(BadLoad, match="--mix takes"):
        shared.schedule_of(chosen("--mix", "folder", "--hit-ratio", "0.3"))


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(BadLoad):
        shared.schedule_of(chosen("--rate", "0"))
