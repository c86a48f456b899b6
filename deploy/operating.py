"""The commands of who operates a running cluster: each takes its options, gives its exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.cli import main as bench_main
from deploy import drain as draining
from deploy import explain as explaining
from deploy import operators, places
from deploy.settings import resolved_file, running, tell
from kvstore import cluster, credentials
from kvstore.errors import ConfigError


def keygen(options: argparse.Namespace) -> int:
    """Makes an API key."""
    key, digest = places.new_key()
    try:
        msgspec.convert(
            {"name": options.tenant, "keys_sha256": [digest]}, type=cluster.Tenant, strict=True
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"tenant {options.tenant!r}: {error}") from None
    print(f"API key, shown only here: {key}\n\nFor the cluster file:\n\n[[tenants]]")
    print(f'name = "{options.tenant}"\nkeys_sha256 = ["{digest}"]')
    return 0


def explain(options: argparse.Namespace) -> int:
    """Who would serve a request, and why."""
    config = running(options)
    token = credentials.load(Path(config.state_dir)).http_token()
    request = explaining.read(options.request)
    proxy = cluster.admin_address(config, Path(config.run_dir))
    told = explaining.ask(proxy, token, options.tenant, request)
    print(json.dumps(told, indent=2) if options.json else explaining.text(told))
    return 0


def flush(options: argparse.Namespace) -> int:
    """Nothing cached for a tenant is used any more."""
    print(operators.flush(running(options), options.tenant))
    return 0


def tenants(options: argparse.Namespace) -> int:
    """What is held of each tenant."""
    print(operators.tenants(running(options)))
    return 0


def token(options: argparse.Namespace) -> int:
    """Prints the operator's token."""
    print(credentials.load(Path(running(options).state_dir)).http_token())
    return 0


def audit(words: Sequence[str]) -> int:
    """The audit is the benchmark's; of the deployment it is told what was chosen at its start."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path)
    options, others = parser.parse_known_args(words)
    if not {"-h", "--help"} & set(words):
        try:
            others += ["--config", str(resolved_file(options))]
        except ConfigError as error:
            sys.stderr.write(f"kvferry: {error}\n")
            return 2
    return bench_main(["audit", *others])


def drain(options: argparse.Namespace) -> int:
    """Nothing new for a worker."""
    config = running(options)
    known = credentials.load(Path(config.state_dir))
    seconds = None if options.undo else options.seconds
    return draining.run(config, known, options.name, seconds, tell)
