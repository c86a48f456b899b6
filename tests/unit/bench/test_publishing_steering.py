"""README's section on steering says what the kept results say, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.cli import main
from bench.publishing.page import RESULTS, CannotPublish, replaced
from bench.publishing.steering import COMMANDS, SECTION, kept, plots, publish, section
from bench.reporting.svg import standalone_svg
from bench.result import CommandResult

ROOT = Path(__file__).parents[3]
MARKS = f"<!-- {SECTION} -->\n<!-- /{SECTION} -->\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(f"before\n{MARKS}after\n", encoding="utf-8")
    (tmp_path / RESULTS).mkdir(parents=True)
    return tmp_path


def result_of(command: str, **metrics: float) -> CommandResult:
    one = kept(ROOT)[command]
    return msgspec.structs.replace(one, metrics={**one.metrics, **metrics})


def test_readme_is_the_section_of_the_results_it_names() -> None:
    results = kept(ROOT)
    assert set(results) == set(COMMANDS)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(page, SECTION, section(results)) == page
    for name, plot in plots(results).items():
        assert (ROOT / RESULTS / name).read_text(encoding="utf-8") == standalone_svg(plot)


def test_figures_are_the_results() -> None:
    results = {
        "simulate": result_of("simulate", hit_ratio=0.777),
        "index": result_of("index", bytes_per_entry=23.0),
        "router": result_of("router", kvferry_rps_1k=4321.0),
    }
    text = section(results)
    assert "| kvferry | 0.777 |" in text
    assert "an entry takes 23 bytes" in text
    assert "| kvferry | 4,321 |" in text
    for one in results.values():
        assert one.verdict.sentence in text


def test_what_is_not_published_anew_stays(clone: Path, tmp_path: Path) -> None:
    for command in ("index", "simulate"):
        file = tmp_path / f"of-{command}.json"
        file.write_bytes(msgspec.json.encode(result_of(command)))
        assert main(["publish", "--into", str(clone), str(file)]) == 0
    page = (clone / "README.md").read_text(encoding="utf-8")
    assert page == replaced(f"before\n{MARKS}after\n", SECTION, section(kept(clone)))
    assert set(kept(clone)) == {"index", "simulate"}
    assert "<svg" in (clone / RESULTS / "index.svg").read_text()


@pytest.mark.parametrize("content", [b"{}", b"no JSON", None])
def test_what_is_no_result_changes_nothing(
    clone: Path, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "of-index.json"
    if content is not None:
        file.write_bytes(content)
    before = (clone / "README.md").read_bytes()
    with pytest.raises(CannotPublish, match=str(file)):
        publish(clone, [file])
    assert (clone / "README.md").read_bytes() == before


def test_other_commands_results_are_refused(clone: Path, tmp_path: Path) -> None:
    file = tmp_path / "of-run.json"
    other = msgspec.structs.replace(result_of("index"), command="calibrate")
    file.write_bytes(msgspec.json.encode(other))
    with pytest.raises(CannotPublish, match="of calibrate; published are simulate"):
        publish(clone, [file])
