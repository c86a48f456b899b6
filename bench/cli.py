"""``kvferry bench``: measures any server that speaks the OpenAI API.

Each command is a module of ``bench.commands`` with ``SUMMARY``, ``EXAMPLE``, ``add`` (its options)
and ``run``; only the one asked for is loaded, so that the others' libraries cost it no time.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from bench.errors import BenchError

COMMANDS: Mapping[str, str] = {
    "run": "put a load on a server and report what came of it",
    "sweep": "find the highest rate that keeps a latency limit",
    "replay": "put a recorded trace on a server",
    "compare": "is B slower than A, or is it noise?",
    "report": "write a run's report again",
    "stub": "a server with exactly known delays, to audit any client",
    "selftest": "audit this client against the stub and other clients",
    "transport": "how fast KV moves between two processes, beside what the machine allows",
    "index": "what it costs a proxy to know what its workers hold",
    "router": "what the proxy costs a request, beside another router",
    "flood": "what a tenant that floods the caches takes from one that does not",
    "isolation": "what it costs that tenants are kept apart: CPU of the proxy, and hits",
    "restart": "how soon a proxy that was killed steers as well as before",
    "simulate": "where requests of a trace go, and how long they wait, in a fleet you do not have",
    "predict": "does a request find and take what the proxy said it would?",
    "calibrate": "how long a server's prefills take, for simulate",
    "audit": "are tenants apart, and is nothing of theirs kept? (or: kvferry audit)",
    "publish": "write README's figures of steering from results",
    "headline": "the project's own reference table, measured on this machine",
}


class Command(Protocol):
    """A module of ``bench.commands``."""

    EXAMPLE: str

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Its options."""

    def run(self, options: argparse.Namespace) -> int:
        """Does it; the exit code. Raises BenchError."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: done and good; 1: done, and a limit was not kept; 2: it could not run, one line why."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="kvferry bench",
        description="Measures any server that speaks the OpenAI API.",
        epilog="example:\n  kvferry bench run http://127.0.0.1:8000 --rate 2 --seconds 30\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        loaded = _command(name) if words[:1] == [name] else None
        one = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  {loaded.EXAMPLE}\n" if loaded else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if loaded:
            loaded.add(one)
            one.set_defaults(run=loaded.run)
    options = parser.parse_args(words)
    try:
        return int(options.run(options))
    except BenchError as error:
        # A server's own words may be in it; none of them is to move the cursor.
        told = "".join(one if one.isprintable() else " " for one in str(error))
        sys.stderr.write(f"kvferry bench: {told}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _command(name: str) -> Command:
    return cast("Command", importlib.import_module(f"bench.commands.{name}"))
