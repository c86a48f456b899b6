"""A run's files, written and read again."""

import csv
import json
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.records import Record
from bench.reporting import files
from bench.reporting.files import BadResult, read_run, summary_csv, write_run, write_whole
from tests.support.reports import a_record, a_run

TEXT = st.text(max_size=20)
SECONDS = st.floats(0, 1e6)


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    return msgspec.structs.replace(
        a_record(1, random.Random(draw(st.integers(0, 9)))),
        tenant=draw(TEXT),
        error=draw(TEXT),
        path=draw(TEXT),
        intended=draw(SECONDS),
        sent=draw(SECONDS),
        phase=draw(st.sampled_from(["warm", "prime", "measured"])),
        stages=draw(st.dictionaries(TEXT, SECONDS, max_size=3)),
    )


@settings(max_examples=30, deadline=None)
@given(records=st.lists(any_record(), max_size=4), setting=TEXT)
def test_what_was_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], setting: str
) -> None:
    folder = tmp_path_factory.mktemp("run")
    result = msgspec.structs.replace(a_run(3)[0], settings={"a": setting, "b": [1, {"c": None}]})
    write_run(folder, result, records)
    assert read_run(folder) == (result, records)


def test_the_folder_is_made_and_holds_four_files_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    result, records = a_run(12)
    write_run(folder, result, records)
    assert {path.name for path in folder.iterdir()} == {
        "result.json", "requests.jsonl", "summary.csv", "report.html",
    }  # fmt: skip
    written = json.loads((folder / "result.json").read_text())
    assert written["schema"] == 1
    assert written["metrics"]["mean_lag_ms"] == pytest.approx(1.0)
    assert len((folder / "requests.jsonl").read_text().splitlines()) == 12
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_the_summary_has_a_row_for_each_latency_and_gaps_for_fake_percentiles() -> None:
    rows = list(csv.DictReader(summary_csv(a_run(30)[0]).splitlines()))
    by_name = {row["metric"]: row for row in rows}
    assert len(by_name) == len(rows) == 8
    assert by_name["ttft"]["count"] == "30"
    assert by_name["ttft"]["p99_ms"] == ""
    assert float(by_name["lag"]["mean_ms"]) == pytest.approx(1.0)


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_whole_before_it_takes_the_olds_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")
    seen: list[tuple[bytes, bytes]] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append((self.read_bytes(), target.read_bytes()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_whole(path, b"new")
    assert seen == [(b"new", b"old")]
    assert path.read_bytes() == b"new"


def test_a_folder_with_a_result_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(files, "write_whole", lambda path, _: written.append(path.name))
    write_run(tmp_path, *a_run(2))
    assert written[-1] == "result.json"
    assert len(written) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", None, "result.json cannot be read: No such file"),
        ("requests.jsonl", None, "requests.jsonl cannot be read: No such file"),
        ("result.json", b"{", "result.json is damaged"),
        ("result.json", b"\xff\xfe", "result.json is damaged"),
        ("result.json", b'{"schema": 7}', "result.json has schema 7; this version reads 1"),
        ("result.json", b'{"schema": 1}', "result.json is damaged: .*missing required field"),
        ("result.json", b"[]", "result.json is damaged"),
        ("requests.jsonl", b'{"number": 1}\n', "requests.jsonl, line 1, is damaged"),
        ("requests.jsonl", b"\xff\n", "requests.jsonl, line 1, is damaged"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    write_run(tmp_path, *a_run(2))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadResult, match=message) as raised:
        read_run(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_line_cut_short_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, *a_run(3))
    path = tmp_path / "requests.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadResult, match="line 3"):
        read_run(tmp_path)
