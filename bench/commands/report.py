"""``kvferry bench report``: a run's report written again from its result and requests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.reporting.files import read_run, write_run
from bench.reporting.run_report import run_document
from bench.reporting.text import render_text

EXAMPLE = "kvferry bench report bench-results/2026-01-31-120000-run"


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("folder", type=Path, help="a run's folder, with result.json")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write elsewhere")


def run(options: argparse.Namespace) -> int:
    """See Command."""
    result, records = read_run(options.folder)
    write_run(options.out or options.folder, result, records)
    sys.stdout.write(render_text(run_document(result, records)))
    return 0
