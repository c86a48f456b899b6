"""``python -m bench.first_light --json FILE``: kvferry beside vLLM and vLLM's NIXL pair."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from bench import environment
from bench.client import Client
from bench.first_light import report
from bench.first_light.bounds import BOUNDS, TOTAL_MINUTES, Bound, Verdict, verdict
from bench.first_light.parts.dram import Dram
from bench.first_light.parts.greedy import Greedy
from bench.first_light.parts.handover import Handover
from bench.first_light.parts.hit import Hit
from bench.first_light.parts.miss import Miss
from bench.first_light.parts.mixed import Mixed
from bench.first_light.parts.soak import Soak
from bench.first_light.phases import AnyPart, Figures, Phase, Runner, plan_rounds
from bench.first_light.workload import BadSetting, Workload, differences, varied
from bench.launchers import nixl
from bench.launchers.kvferry import Kvferry
from bench.launchers.nixl import NixlPair
from bench.launchers.plain import Plain
from bench.launchers.system import Setting, System
from bench.prompts import Prompts

SYSTEMS: Mapping[str, Callable[[Setting, Client], System]] = {
    "plain": Plain,
    "nixl": NixlPair,
    "kvferry": Kvferry,
}
NAMES = ("miss", "hit", "handover", "mixed", "greedy", "soak", "dram")
REQUEST_SECONDS = 600.0
FEWEST_ROUNDS = 3

DEFAULT_MODEL = Path("models", "smollm2-135m-instruct")
"""Where `make install` prepares the default model, below kvferry's folder in the user's cache."""


class Stop(Exception):
    """The benchmark cannot run; the message is one line."""


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_light", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument(
        "--only", choices=NAMES, action="append", help="run this part alone; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS, help="at least 3 count")
    parser.add_argument(
        "--model", type=Path, default=_cache() / DEFAULT_MODEL, help="its directory"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default=environment.fast_dtype(),
        help="of all systems (default: what this processor computes fast)",
    )
    parser.add_argument(
        "--compile",
        choices=("on", "off"),
        default="off",
        help="whether engines compile the model; off is kvferry's default on CPU (default: off)",
    )
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=tuple(SYSTEMS))
    parser.add_argument("--seed", default=secrets.token_hex(6), help="repeats the prompts")
    parser.add_argument("--first-port", type=int, default=18300)
    parser.add_argument("--logs", type=Path, help="keep the systems' logs in this folder")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="vary the workload"
    )
    return parser.parse_args(argv)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvferry"


def plan(chosen: argparse.Namespace) -> list[Phase]:
    """The phases of a run: the main one, and one for greedy output in each other dtype."""
    order = random.Random(f"{chosen.seed}/order")
    greedy = {"float32": Greedy("float32", "fp32"), "bfloat16": Greedy("bfloat16", "bf16")}
    parts: list[AnyPart] = [
        Miss(),
        Hit(),
        Handover(),
        Mixed(),
        greedy[chosen.dtype],
        Soak(),
        Dram(),
    ]
    wanted = [part for part in parts if chosen_part(chosen, part.name.partition("_")[0])]
    phases = [plan_rounds(chosen.dtype, wanted, chosen.systems, chosen.rounds, order)]
    for dtype, part in greedy.items():
        if dtype != chosen.dtype and chosen_part(chosen, "greedy"):
            phases.append(plan_rounds(dtype, [part], chosen.systems, 1, order))
    return phases


def chosen_part(chosen: argparse.Namespace, name: str) -> bool:
    """Whether the part called ``name`` runs."""
    return not chosen.only or name in chosen.only


def bounds_of(chosen: argparse.Namespace) -> list[Bound]:
    """The bounds of the parts that run."""
    whole = Bound("total_minutes", "", "at most", TOTAL_MINUTES)
    return [*(bound for bound in BOUNDS if chosen_part(chosen, bound.part)), whole]


async def measure(
    chosen: argparse.Namespace, workload: Workload, phases: Sequence[Phase], folder: Path
) -> dict[str, Any]:
    """Run everything; the result as it is written. Cancelled, it tells what there is so far."""
    began = time.monotonic()
    logs = chosen.logs or folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    described = environment.describe()
    async with Client(REQUEST_SECONDS) as client:

        def build(name: str, dtype: str) -> System:
            setting = Setting(
                model=chosen.model.resolve(),
                dtype=dtype,
                compiled=chosen.compile == "on",
                environ=os.environ,
                logs=logs,
                scratch=folder,
                python=sys.executable,
                first_port=chosen.first_port,
            )
            return SYSTEMS[name](setting, client)

        runner = Runner(build, Prompts(chosen.model / "tokenizer.json"), chosen.seed, workload, say)
        try:
            for phase in phases:
                await runner.run(phase)
        except asyncio.CancelledError:
            runner.figures.complaints.append("interrupted: the rest was not measured")
    taken = result(chosen, workload, phases, runner.figures, (time.monotonic() - began) / 60)
    return {**taken, "environment": described}


def result(
    chosen: argparse.Namespace,
    workload: Workload,
    phases: Sequence[Phase],
    figures: Figures,
    minutes: float,
) -> dict[str, Any]:
    """Figures judged, with every setting that made them."""
    metrics: dict[str, float] = {}
    detail: dict[str, Any] = {}
    complaints = list(figures.complaints)
    turns = [(phase, turn) for phase in phases for turn in phase.turns]
    for part in {part.name: part for _, turn in turns for part in turn.parts}.values():
        judgement = part.judge(figures.taken.get(part.name, {}))
        metrics.update(judgement.metrics)
        detail[part.name] = judgement.detail
        complaints += judgement.complaints
    metrics["total_minutes"] = round(minutes, 2)
    return {
        "schema": 1,
        "benchmark": "first_light",
        "metrics": metrics,
        "verdicts": [asdict(verdict(bound, metrics)) for bound in bounds_of(chosen)],
        "complaints": complaints,
        "specified_workload": not differences(workload) and chosen.rounds >= FEWEST_ROUNDS,
        "workload": asdict(workload),
        "varied": differences(workload),
        "rounds": chosen.rounds,
        "order": [[phase.dtype, turn.number, turn.system] for phase, turn in turns],
        "seed": chosen.seed,
        "dtype": chosen.dtype,
        "compile": chosen.compile,
        "turn_seconds": figures.turn_seconds,
        "others_cores": figures.others_cores,
        "parts": detail,
    }


def check(chosen: argparse.Namespace, phases: Sequence[Phase]) -> None:
    """Raises Stop where a system cannot be run here."""
    if not (chosen.model / "tokenizer.json").is_file():
        raise Stop(f"no model in {chosen.model}: run `make install`, or give --model DIR")
    needed = {turn.system for phase in phases for turn in phase.turns}
    if "nixl" in needed and not nixl.installed():
        raise Stop(nixl.ADVICE)


def say(line: str) -> None:
    """Progress, on the error stream with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


async def interruptible(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """``work``, cancelled by Ctrl-C or SIGTERM; no process of a system is left behind."""
    task = asyncio.ensure_future(work)
    for ending in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(ending, task.cancel)
    return await task


def main(argv: Sequence[str] | None = None) -> int:
    """0: every bound kept; 1: one was not, or was not measured; 2: it could not run."""
    chosen = options(argv)
    folder = Path(tempfile.mkdtemp(prefix="first-light-"))
    try:
        workload = varied(chosen.set)
        phases = plan(chosen)
        check(chosen, phases)
        say(f"seed {chosen.seed}, {environment.cpu_model()}, {chosen.dtype}; the plan:")
        print(report.time_plan(phases, workload), file=sys.stderr, flush=True)
        taken = asyncio.run(interruptible(measure(chosen, workload, phases, folder)))
    except (Stop, BadSetting) as error:
        print(f"first_light: {error}", file=sys.stderr)
        return 2
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(taken), indent=1))
    verdicts = [Verdict(**each) for each in taken["verdicts"]]
    print(report.table(verdicts))
    for complaint in taken["complaints"]:
        print(f"! {complaint}")
    if not taken["specified_workload"]:
        print("This was not the specified workload: the verdicts do not count.")
    return 0 if all(each.outcome in ("PASS", "told") for each in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
