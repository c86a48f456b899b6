"""What becomes of a result: files, a table, an exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench import environment
from bench.records import Record
from bench.reporting.document import Document
from bench.reporting.files import BadResult, write_json, write_run, write_whole
from bench.reporting.page import render_page
from bench.reporting.run_report import run_document
from bench.reporting.text import render_text
from bench.result import CommandResult, RunResult

RESULTS = Path("bench-results")


def described(result: RunResult, command: str, settings: Mapping[str, Any]) -> RunResult:
    """``result`` with what made it."""
    return msgspec.structs.replace(
        result, command=command, settings=dict(settings), environment=environment.describe()
    )


def deliver(
    result: RunResult, records: Sequence[Record], out: Path | None, json: Path | None
) -> int:
    """Writes a run's files and prints its table. 0 where the run is valid and nothing failed."""
    folder = out or folder_for(result.command)
    write_run(folder, result, records)
    if json is not None:
        write_json(json, result)
    sys.stdout.write(render_text(run_document(result, records)))
    sys.stdout.write(f"\n{folder}/report.html has the plots.\n")
    return 0 if result.verdict.valid and not result.errors else 1


def deliver_document(
    result: CommandResult, document: Document, out: Path | None, json: Path | None
) -> int:
    """Likewise for a command that is no single run. 0 where its verdict is valid."""
    folder = out or folder_for(result.command)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.html", render_page(document).encode())
    write_json(folder / "result.json", result)
    if json is not None:
        write_json(json, result)
    sys.stdout.write(render_text(document))
    sys.stdout.write(f"\n{folder}/report.html has the plots.\n")
    return 0 if result.verdict.valid else 1


def print_document(
    result: CommandResult, document: Document, html: Path | None, json: Path | None
) -> int:
    """Likewise where files were asked for by name. 0 where its verdict is valid."""
    if html is not None:
        write_whole(html, render_page(document).encode())
    if json is not None:
        write_json(json, result)
    sys.stdout.write(render_text(document))
    return 0 if result.verdict.valid else 1


def ready_folder(command: str, out: Path | None, json: Path | None) -> Path:
    """Where the result goes, ``out`` or one of its own, before anything is measured; ``json`` can
    be written too. Raises BadResult.
    """
    folder = out or folder_for(command)
    require_folder(folder)
    if json is not None:
        require_file(json)
    return folder


def require_file(file: Path) -> None:
    """Likewise for a file that a result is to be written to. Raises BadResult."""
    require_folder(file.parent)
    if file.is_dir():
        raise BadResult(f"{file} is a folder: name a file")


def require_folder(folder: Path) -> None:
    """Makes it, before anything is measured that could not be kept. Raises BadResult."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadResult(f"{folder} cannot hold the result: {error.strerror}") from None


def say(line: str) -> None:
    """Progress, on the error stream with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def folder_for(command: str) -> Path:
    """A folder of its own for a result, named by the time."""
    return RESULTS / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{command}"
