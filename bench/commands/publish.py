"""``kvferry bench publish``: README's figures of steering, from results."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.publishing import steering

EXAMPLE = "kvferry bench publish --into . simulate.json index.json router.json"


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="FILE", help=f"of {', '.join(steering.COMMANDS)}"
    )
    parser.add_argument(
        "--into",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a clone of kvferry: keep the results there, and write README's section and plots",
    )


def run(options: argparse.Namespace) -> int:
    """0: written."""
    steering.publish(options.into, options.results)
    return 0
