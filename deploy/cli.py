"""The ``kvferry`` command.

Children are given a configuration in which nothing is left open, written into the run folder; it
holds hashes of API keys, never a key.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench.cli import main as bench_main
from deploy import checks, doctor, dram, models, operating, places, run_folder, supervisor
from deploy.settings import loaded, resolved, tell
from deploy.welcome import welcome
from kvstore import adapters, cluster, keeper
from kvstore.cluster import ClusterConfig
from kvstore.credentials import load_or_create
from kvstore.errors import ConfigError
from kvstore.launch import is_hub_id
from kvstore.machine import inspect
from kvstore.messages import ROLES

LOCAL_TENANT = "local"

_EXAMPLES = """\
examples:
  kvferry up                                   one prefill and one decode worker, a small model
  kvferry up --prefill 2 --model ./my-model    any Hugging Face folder (or a hub id)
  kvferry up --config cluster.toml --port 9000
  kvferry keygen alice                         an API key for a tenant of the cluster file
  kvferry drain prefill-1                      nothing new for a worker, until it has finished
  kvferry explain --request body.json          who would serve this request, and why
  kvferry flush alice                          nothing cached for a tenant is used any more
  kvferry doctor                               what here could write or show prompts
  kvferry audit --key KEY --key KEY            are tenants apart, is nothing of theirs kept?

every part by itself (each host of a cluster runs what is its own):
  kvferry dram --config cluster.toml
  kvferry prefill --config cluster.toml --name prefill-0
  kvferry decode --config cluster.toml --name decode-0
  kvferry proxy --config cluster.toml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. 0: done; 2: a setting is wrong (one line says which); 130: killed.

    ``doctor`` ends with 1 where something is refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bench"]:
        return bench_main(words[1:])
    if words[:1] == ["audit"]:
        return operating.audit(words[1:])
    options = _parser().parse_args(words)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ConfigError as error:
        sys.stderr.write(f"kvferry: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvferry",
        description="Serve a language model with disaggregated prefill and decode.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"kvferry {importlib.metadata.version('kvferry')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = _command(commands, "up", _up, "start everything on this machine and keep it up")
    up.add_argument("--prefill", type=int, metavar="N", help="number of prefill workers")
    up.add_argument("--decode", type=int, metavar="M", help="number of decode workers")
    up.add_argument("--model", help="built-in name, Hugging Face folder or hub id")
    up.add_argument("--port", type=int, help="port of the OpenAI API; 0 picks a free one")
    for role in ROLES:
        one = _command(commands, role, _worker, f"start one {role} worker", needs_file=True)
        one.add_argument("--name", default=f"{role}-0", help="which one (%(default)s)")
        one.set_defaults(role=role)
    _command(commands, "proxy", _proxy, "start a proxy", needs_file=True)
    _command(commands, "dram", _dram, "start this host's DRAM tier", needs_file=True)
    checked = _command(commands, "doctor", _doctor, "check that nothing is written or shown")
    checked.add_argument("--json", action="store_true", help="print it for programs")
    _add_operating(commands)
    # Listed here; their own parser reads the words after them.
    commands.add_parser("bench", help="measure this or any other server", add_help=False)
    commands.add_parser(
        "audit",
        help="evidence that tenants are apart and nothing is left",
        add_help=False,
    )
    return parser


def _add_operating(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Those of ``deploy.operating``."""
    asked = _command(
        commands, "explain", operating.explain, "ask the running proxy why it sends what where"
    )
    asked.add_argument("--request", type=Path, required=True, help="a JSON file: a request's body")
    asked.add_argument("--tenant", default=LOCAL_TENANT, help="whose request (%(default)s)")
    asked.add_argument("--json", action="store_true", help="print the proxy's whole answer")
    one = _command(
        commands, "drain", operating.drain, "send a worker nothing new, and await its end of work"
    )
    one.add_argument("name", metavar="WORKER", help="for example prefill-1")
    one.add_argument("--undo", action="store_true", help="it may be sent requests again")
    one.add_argument(
        "--seconds", type=float, default=600.0, help="how long to wait for its end (%(default)g)"
    )
    one = _command(
        commands, "flush", operating.flush, "make all that is cached for a tenant unreachable"
    )
    one.add_argument("tenant", help="its name in the cluster file")
    _command(commands, "tenants", operating.tenants, "what is held of each tenant, and what runs")
    _command(
        commands, "token", operating.token, "print the operator's token, for HTTP calls of your own"
    )
    keygen = commands.add_parser("keygen", help="make an API key for a tenant")
    keygen.add_argument("tenant", help="the tenant's name in the cluster file")
    keygen.set_defaults(run=operating.keygen)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    needs_file: bool = False,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
    )
    command.add_argument("--config", type=Path, required=needs_file, help="the cluster's TOML file")
    command.add_argument("--verbose", action="store_true", help="show all that engines say")
    command.set_defaults(run=run)
    return command


# -- up


def _up(options: argparse.Namespace) -> int:
    machine = inspect()
    config = resolved(_with_flags(loaded(options), options), machine)
    checks.require_local(config)
    warned = doctor.require(config, machine)
    with run_folder.owned(config) as folder:
        checks.require_ports(config)
        checks.require_shared_memory(config, dram.SHARED_MEMORY)
        config = _with_model(config, tell)
        on_gpu = machine.device != "cpu"
        checks.require_memory(config, on_gpu, _weight_bytes(config))
        load_or_create(Path(config.state_dir))
        key = ""
        if not config.tenants:
            key, digest = places.new_key()
            config = places.with_tenant(config, LOCAL_TENANT, digest)
        file = run_folder.write(config, folder / run_folder.RESOLVED)
        followed = (options.config or file).absolute()
        parts = supervisor.parts(config, file, on_gpu, options.verbose, followed)
        if warned:
            tell(warned)
        keeper.forbid_core_dumps()
        return asyncio.run(_supervise(config, parts, key))


async def _supervise(config: ClusterConfig, parts: list[supervisor.Part], key: str) -> int:
    stop, running = asyncio.Event(), supervisor.Supervisor(config, parts, tell)
    killed = False

    def on_signal() -> None:
        nonlocal killed
        if stop.is_set():
            killed = True
            running.kill()
        else:
            tell("stopping (once more to kill)")
            stop.set()

    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(ending, on_signal)
    tell(
        f"starting {config.model.name}: prefill workers: {config.prefill.count}, "
        f"decode workers: {config.decode.count} (takes up to a minute)"
    )
    await running.run(stop, lambda: print(welcome(config, key), flush=True))
    return 130 if killed else 0


# -- one part


def _worker(options: argparse.Namespace) -> int:
    machine = inspect()
    config = resolved(loaded(options), machine)
    cluster.parse_worker_name(config, options.name)
    warned = doctor.require(config, machine)
    config = _with_model(config, tell)
    return _become(options.role, config, options, warned, "--name", options.name)


def _proxy(options: argparse.Namespace) -> int:
    machine = inspect()
    config = resolved(loaded(options), machine)
    if not config.tenants:
        raise ConfigError("no tenants in the configuration: make one with kvferry keygen NAME")
    adapters.require_names(config)
    warned = doctor.require(config, machine)
    # Not resolved: where configurations are mounted, links are what changes.
    return _become("proxy", config, options, warned, "--follow", str(options.config.absolute()))


def _dram(options: argparse.Namespace) -> int:
    machine = inspect()
    config = resolved(loaded(options), machine)
    if not config.dram.enabled:
        raise ConfigError("dram.enabled is false in the configuration")
    warned = doctor.require(config, machine)
    checks.require_dram_ports(config)  # or we would take a running tier's memory away
    checks.require_shared_memory(config, dram.SHARED_MEMORY)
    dram.remove_segment(config)
    run_folder.made(config)  # where relays are told
    command = dram.command(config, machine.device != "cpu", options.verbose)
    return _exec(command.argv, dict(command.env), warned)


def _become(
    part: str, config: ClusterConfig, options: argparse.Namespace, warned: str, *flags: str
) -> int:
    """Replaces this program with ``part``, given a configuration with nothing left open."""
    name = options.name if "name" in options else part
    file = run_folder.write(config, run_folder.made(config) / f"{name}.toml")
    loud = ("--verbose",) if options.verbose and part != "proxy" else ()
    argv = (sys.executable, "-m", part, "--config", str(file), *flags, *loud)
    return _exec(argv, {}, warned)


def _exec(argv: Sequence[str], env: dict[str, str], warned: str) -> int:
    if warned:
        tell(warned)
    keeper.forbid_core_dumps()
    os.execve(argv[0], list(argv), {**os.environ, **env})  # noqa: S606 - our own argument list


def _doctor(options: argparse.Namespace) -> int:
    machine = inspect()
    return doctor.run(resolved(loaded(options), machine), machine, options.json)


# -- what the commands share


def _with_flags(config: ClusterConfig, options: argparse.Namespace) -> ClusterConfig:
    """``config`` with what the command line says instead. Raises ConfigError."""
    changed = msgspec.to_builtins(config)
    for role in ROLES:
        if getattr(options, role) is not None:
            changed[role]["count"] = getattr(options, role)
    if options.model is not None:
        changed["model"] |= {"path": options.model, "name": ""}
    if options.port is not None:
        changed["proxy"]["port"] = options.port
    try:
        return msgspec.convert(changed, type=ClusterConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"command line: {error}") from None


def _with_model(config: ClusterConfig, say: Callable[[str], None]) -> ClusterConfig:
    adapters.require(config)
    cache = places.homes(os.environ, os.getuid()).cache
    path = models.prepare(config.model.path, cache, say)
    if config.slices > 1 and not is_hub_id(path):
        checks.require_heads(config, models.kv_heads(Path(path)))
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, path=path))


def _weight_bytes(config: ClusterConfig) -> int:
    return 0 if is_hub_id(config.model.path) else models.weight_bytes(Path(config.model.path))


if __name__ == "__main__":
    sys.exit(main())
