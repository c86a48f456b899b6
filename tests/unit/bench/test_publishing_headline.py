"""README says what the result says, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.headline.bounds import BOUNDS
from bench.publishing.headline import RESULT, SECTION, WORDS, plots, publish, section
from bench.publishing.page import RESULTS, CannotPublish, replaced
from bench.reporting.svg import standalone_svg

ROOT = Path(__file__).parents[3]


def load(scale: float) -> dict[str, Any]:
    return {
        "ttft_ms": {"p50": 100.0 * scale},
        "enough_for_p99": True,
        "itl_ms": {"p50": 20.0, "p99": 40.0 * scale, "p100": 50.0},
        "hit_ratio": 0.3,
        "ttfts_ms": [100.0 * scale, 120.0],
    }


def result(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "metrics": {"total_minutes": 12.3},
        "verdicts": [
            {
                "metric": "hit_ttft_vs_nixl",
                "value": 0.58,
                "kind": "at most",
                "limit": 0.6,
                "outcome": "PASS",
            },
            {
                "metric": "greedy_equal_fp32",
                "value": None,
                "kind": "at least",
                "limit": 1.0,
                "outcome": "not measured",
            },
        ],
        "complaints": [],
        "varied": {"mixed_rate": 0.2},
        "workload": {
            "reuse_requests": 2,
            "reuse_rate": 1.0,
            "reuse_prompt": 960,
            "reuse_output": 32,
            "reuse_fraction": 0.3,
            "soak_clients": 7,
            "soak_seconds": 60.0,
        },
        "rounds": 2,
        "specified_workload": False,
        "dtype": "float32",
        "environment": {"date": "2026-01-31T12:00:00+00:00", "cores": 2, "cpu": "a processor"},
        "parts": {"reuse": {"kvferry": {1: load(1.0)}, "plain": {1: load(2.0), 2: load(4.0)}}},
    }
    return {**whole, **changes}


def test_readme_is_the_section_of_the_result_it_names() -> None:
    kept = msgspec.json.decode((ROOT / RESULT).read_bytes())
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(page, SECTION, section(kept)) == page
    for name, plot in plots(kept).items():
        assert (ROOT / RESULTS / name).read_text(encoding="utf-8") == standalone_svg(plot)


def test_the_section_tells_figures_bounds_and_what_was_varied() -> None:
    text = section(result())
    assert "0.58 | ≤ 0.6 | kept" in text
    assert "– | ≥ 1 | not measured" in text
    assert "--set mixed_rate=0.2" in text
    assert "| two vLLM engines | 300 | 20 | 120 | 30.0% |" in text
    assert "not the load the bounds were set for" in text
    assert text.index("two vLLM engines") < text.index("| kvferry |")
    assert "headline-ttft.svg" in text


def test_no_percentile_is_published_without_ten_samples_beyond_it() -> None:
    few = {**load(1.0), "enough_for_p99": False}
    text = section(result(parts={"reuse": {"kvferry": {1: few}}}))
    assert "| kvferry | 100 | 20 | too few | 30.0% |" in text


def test_the_loads_own_numbers_are_told() -> None:
    verdict = {
        "metric": "soak_errors", "value": 0.0, "kind": "at most", "limit": 0.0, "outcome": "PASS",
    }  # fmt: skip
    assert "| 7 clients for 60 s: errors | 0 | ≤ 0 | kept |" in section(result(verdicts=[verdict]))


def test_the_specified_load_needs_no_excuse() -> None:
    assert "bounds were set for" not in section(result(specified_workload=True, varied={}))


def test_complaints_are_told() -> None:
    assert "others computed meanwhile" in section(result(complaints=["others computed meanwhile"]))


def test_without_the_load_there_are_no_plots() -> None:
    bare = result(parts={})
    assert plots(bare) == {}
    assert "svg" not in section(bare)


def test_every_bound_metric_has_words() -> None:
    assert {bound.metric for bound in BOUNDS if bound.part != "reuse"} == set(WORDS)


def test_publishing_changes_the_section_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "# before\n<!-- measured -->\nold figures\n<!-- /measured -->\nafter\n", encoding="utf-8"
    )
    (tmp_path / RESULTS).mkdir(parents=True)
    publish(tmp_path, result())
    page = readme.read_text(encoding="utf-8")
    assert page.startswith("# before\n")
    assert page.endswith("<!-- /measured -->\nafter\n")
    assert "old figures" not in page
    assert "<svg" in (tmp_path / RESULTS / "headline-itl.svg").read_text()
    assert msgspec.json.decode((tmp_path / RESULT).read_bytes())["rounds"] == 2


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    (tmp_path / RESULTS).mkdir(parents=True)
    readme.write_text("# nothing to replace\n", encoding="utf-8")
    with pytest.raises(CannotPublish, match="no section"):
        publish(tmp_path, result())
    assert readme.read_text(encoding="utf-8") == "# nothing to replace\n"
    assert not (tmp_path / RESULT).exists()


def test_a_folder_that_is_no_clone_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# another project\n", encoding="utf-8")
    with pytest.raises(CannotPublish, match="no clone of kvferry"):
        publish(tmp_path, result())
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
