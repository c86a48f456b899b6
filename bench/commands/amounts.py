"""Options of the commands that put stub workers behind a proxy: an amount each, and a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from bench import environment
from bench.load.errors import BadLoad
from bench.routing.rendering import FILES


def add(
    parser: argparse.ArgumentParser, amounts: Mapping[str, int | float], words: Mapping[str, str]
) -> None:
    """An option for each of ``amounts``, by name with its default, and those of all results.

    ``words``: what each amount is.
    """
    for name, default in amounts.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{words[name]} (%(default)s)",
        )
    parser.add_argument(
        "--model",
        type=Path,
        default=environment.default_model(),
        metavar="FOLDER",
        help="whose tokenizer the workers have (%(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result alone")


def check_model(model: Path) -> None:
    """Raises BadLoad where it has no tokenizer."""
    for name in FILES:
        if not (model / name).is_file():
            raise BadLoad(f"{model} has no {name}: run `make install`, or name another --model")
