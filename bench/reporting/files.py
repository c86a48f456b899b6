"""The four files of a run, in a folder of its own, and how they are read again."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.errors import BenchError
from bench.records import Record
from bench.reporting.page import render_page
from bench.reporting.run_report import run_document
from bench.result import SCHEMA, RunResult

RESULT = "result.json"
REQUESTS = "requests.jsonl"
SUMMARY = "summary.csv"
REPORT = "report.html"

_COLUMNS = ("count", "mean", "p50", "p90", "p95", "p99", "max")


class BadResult(BenchError):
    """A folder that holds no run that can be read; the message is one line and names the file."""


class _Numbered(msgspec.Struct):
    schema: int


def write_run(folder: Path, result: RunResult, records: Sequence[Record]) -> None:
    """Writes the folder's four files, each whole or not at all, ``result.json`` last.

    So a folder with a ``result.json`` has the rest as well. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = msgspec.json.Encoder().encode_lines(records)
    write_whole(folder / REQUESTS, lines)
    write_whole(folder / SUMMARY, summary_csv(result).encode())
    write_whole(folder / REPORT, render_page(run_document(result, records)).encode())
    write_json(folder / RESULT, result)


def read_run(folder: Path) -> tuple[RunResult, list[Record]]:
    """The run that :func:`write_run` left there.

    Raises BadResult if a file is missing, damaged, or of a schema this version does not know.
    """
    return _read_result(folder / RESULT), _read_records(folder / REQUESTS)


def summary_csv(result: RunResult) -> str:
    """A row for each latency, milliseconds; a percentile without enough samples is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", *(c if c == "count" else f"{c}_ms" for c in _COLUMNS)])
    for name, told in result.latencies.items():
        writer.writerow([name, *(getattr(told, column) for column in _COLUMNS)])
    return text.getvalue()


def write_json(path: Path, value: object) -> None:
    """``value`` as indented JSON. Raises OSError."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Replaces the file in one step: a reader sees the old content or the new. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read_result(path: Path) -> RunResult:
    content = _content(path)
    try:
        schema = msgspec.json.decode(content, type=_Numbered).schema
        if schema != SCHEMA:
            raise BadResult(f"{path} has schema {schema}; this version reads {SCHEMA}")
        return msgspec.json.decode(content, type=RunResult)
    except (msgspec.DecodeError, UnicodeDecodeError) as damage:
        raise BadResult(f"{path} is damaged: {damage}") from damage


def _read_records(path: Path) -> list[Record]:
    decoder = msgspec.json.Decoder(Record)
    records = []
    for number, line in enumerate(_content(path).splitlines(), 1):
        try:
            records.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as damage:
            raise BadResult(f"{path}, line {number}, is damaged: {damage}") from damage
    return records


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise BadResult(f"{path} cannot be read: {problem.strerror}") from problem
