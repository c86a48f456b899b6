"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.driving.fleet import LoadFailed
from bench.driving.run import RunPlan, served_model
from bench.driving.target import Target
from bench.load import tenancy, workload
from bench.load.errors import BadLoad
from bench.load.schedule import Schedule
from bench.load.workload import Workload
from bench.measures import slo


def add_target(parser: argparse.ArgumentParser) -> None:
    """The server under load."""
    group = parser.add_argument_group("server")
    group.add_argument("--model", help="name of the model (default: the first the server tells)")
    group.add_argument("--api", choices=("completions", "chat"), default="completions")
    group.add_argument(
        "--key",
        action="append",
        default=[],
        help="API key; repeat it, and tenants take them in turn (default: $OPENAI_API_KEY). Others "
        "on this host can see a command line: --keys-file is private",
    )
    group.add_argument("--keys-file", type=Path, metavar="FILE", help="one API key for each line")
    group.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="a request's"
    )
    group.add_argument(
        "--body", default="{}", metavar="JSON", help="further fields of every request"
    )
    group.add_argument(
        "--let-eos-end",
        action="store_true",
        help="answers may end early; otherwise servers are asked to ignore the end token",
    )


def add_load(parser: argparse.ArgumentParser) -> None:
    """What is asked and when."""
    fields = {field.name: field for field in msgspec.structs.fields(Workload)}
    defaults = {name: field.default for name, field in fields.items()}
    group = parser.add_argument_group("load")
    pacing = group.add_mutually_exclusive_group()
    pacing.add_argument("--rate", type=float, help="open loop: requests per second (default: 1)")
    pacing.add_argument("--users", type=int, metavar="N", help="closed loop: N users")
    pacing.add_argument("--batch", type=int, metavar="N", help="all at once, N of them in flight")
    group.add_argument("--arrival", choices=("poisson", "gamma", "constant"), default="poisson")
    group.add_argument("--burstiness", type=float, default=1.0, help="shape of gamma arrivals")
    group.add_argument("--requests", type=int, metavar="N", help="end after so many")
    group.add_argument("--seconds", type=float, help="end sending after so long (default: 60)")
    for name, told in (
        ("prompt", "tokens: 512, 200-1200, normal:512:64, lognormal:512:0.8"),
        ("output", "tokens, likewise"),
    ):
        group.add_argument(f"--{name}", default=defaults[name], help=f"{told} (%(default)s)")
    group.add_argument(
        "--hit-ratio", type=float, default=0.0, help="fraction of a prompt that is shared"
    )
    group.add_argument("--prefixes", type=int, default=defaults["prefixes"], help="to share")
    group.add_argument("--turns", type=int, default=1, help="of a conversation")
    group.add_argument("--think", type=float, default=0.0, metavar="SECONDS", help="between turns")
    group.add_argument("--tenants", type=int, default=1, metavar="N")
    group.add_argument("--tenant-skew", type=float, default=0.0, help="0: all ask alike")
    group.add_argument("--mix", type=Path, metavar="FOLDER", help="ServeGen's clients as tenants")
    group.add_argument(
        "--start",
        choices=("cold", "warm", "primed"),
        help="before measuring: nothing, unrelated requests, or each shared prefix once "
        "(default: primed where prompts share, else warm)",
    )
    group.add_argument("--seed", type=int, default=0, help="of the schedule (default: 0)")
    group.add_argument("--salt", help="of the prompts' text (default: a new one for every run)")


def add_run(parser: argparse.ArgumentParser) -> None:
    """How it is measured and where it goes."""
    group = parser.add_argument_group("measurement")
    group.add_argument("--slo", help="ttft=500,tpot=30 (ms) or a preset such as " + _presets())
    group.add_argument(
        "--block-size",
        type=int,
        default=16,
        metavar="TOKENS",
        help="that the server caches at a time: the intended hit ratio counts whole blocks "
        "(%(default)s, vLLM's default on GPUs; kvferry has 32 on CPUs)",
    )
    group.add_argument("--processes", type=int, default=1, metavar="N", help="that send the load")
    group.add_argument("--out", type=Path, metavar="FOLDER", help="for the result's files")
    group.add_argument("--json", type=Path, metavar="FILE", help="the result alone, for a program")


def _presets() -> str:
    return next(iter(slo.PRESETS))


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload that the command line describes."""
    pacing: dict[str, Any] = {
        "pacing": "open",
        "rate": 1.0 if options.rate is None else options.rate,
    }
    if options.users is not None:
        pacing = {"pacing": "users", "users": options.users}
    elif options.batch is not None:
        pacing = {"pacing": "batch", "users": options.batch}
    seconds = options.seconds
    if pacing["pacing"] == "open" and options.requests is None and seconds is None:
        seconds = 60.0
    named = (
        *("arrival", "burstiness", "requests", "prompt", "output", "hit_ratio", "prefixes"),
        *("turns", "think", "tenants", "tenant_skew", "seed"),
    )
    start: workload.Start = options.start or ("primed" if options.hit_ratio else "warm")
    chosen = {name: getattr(options, name) for name in named}
    return Workload(**pacing, **chosen, seconds=seconds, start=start)


def schedule_of(options: argparse.Namespace) -> tuple[Schedule, dict[str, Any]]:
    """The schedule, and the settings that made it. Raises BadLoad."""
    asked = workload_of(options)
    if options.mix is None:
        return workload.build(asked), msgspec.to_builtins(asked)
    if options.requests or options.users or options.batch or options.hit_ratio or options.turns > 1:
        raise BadLoad("--mix takes --rate, --seconds, --prompt, --output and --seed, nothing else")
    clients = tenancy.read(options.mix)
    seconds = 60.0 if options.seconds is None else options.seconds
    mixed = tenancy.mixed(clients, asked.rate, seconds, asked.prompt, asked.output, asked.seed)
    settings = {"mix": options.mix.name, "clients": len(clients), "rate": asked.rate}
    return mixed, {
        **settings,
        "seconds": seconds,
        "prompt": asked.prompt,
        "output": asked.output,
        "seed": asked.seed,
    }


async def target_of(options: argparse.Namespace, base: str) -> Target:
    """The server at ``base``. Raises BadLoad, LoadFailed."""
    if not options.timeout > 0:
        raise BadLoad(f"--timeout is above 0 seconds, not {options.timeout:g}")
    keys = _keys(options)
    base = _address(base)
    try:
        extra = msgspec.json.decode(options.body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadLoad(f"--body is no JSON object: {error}") from None
    if not options.let_eos_end:
        extra = {"ignore_eos": True, **extra}
    model = options.model or await served_model(base, keys[0] if keys else "")
    return Target(
        base=base,
        model=model,
        api=options.api,
        keys=keys,
        extra=extra,
        timeout_seconds=options.timeout,
    )


def plan_of(
    options: argparse.Namespace, target: Target, schedule: Schedule, load: Mapping[str, Any]
) -> RunPlan:
    """A run of ``schedule``, which the settings ``load`` made. Raises BadLoad."""
    if options.processes < 1:
        raise BadLoad(f"--processes is 1 at least, not {options.processes}")
    return RunPlan(
        target=target,
        schedule=schedule,
        salt=options.salt or secrets.token_hex(8),
        slo=slo.parse(options.slo) if options.slo else None,
        block_size=options.block_size,
        load={**load, "processes": options.processes},
    )


def _keys(options: argparse.Namespace) -> tuple[str, ...]:
    if options.keys_file is not None:
        try:
            lines = options.keys_file.read_text(encoding="utf-8").split()
        except OSError as error:
            raise BadLoad(f"{options.keys_file}: {error.strerror}") from None
        return tuple(lines)
    known = os.environ.get("OPENAI_API_KEY", "")
    return tuple(options.key) or ((known,) if known else ())


def _address(base: str) -> str:
    """``base`` without what OpenAI clients append to it."""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise LoadFailed(f"{base!r} is no address: give http://host:port")
    if "@" in parts.netloc or parts.query:
        raise LoadFailed("an address is kept in the result: give a key with --keys-file instead")
    return base.rstrip("/").removesuffix("/v1")
