"""The project's reference benchmark: which parts run, on which systems, and the result."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import environment
from bench.client import Client
from bench.errors import BenchError
from bench.headline.amounts import Amounts, differences
from bench.headline.bounds import BOUNDS, TOTAL_MINUTES, Bound, verdict
from bench.headline.parts.dram import Dram
from bench.headline.parts.greedy import Greedy
from bench.headline.parts.handover import Handover
from bench.headline.parts.hit import Hit
from bench.headline.parts.miss import Miss
from bench.headline.parts.mixed import Mixed
from bench.headline.parts.reuse import Reuse
from bench.headline.parts.soak import Soak
from bench.headline.phases import AnyPart, Figures, Phase, Runner, Say, plan_rounds
from bench.launchers import nixl
from bench.launchers.kvferry import Kvferry
from bench.launchers.lmcache import LMCachePair
from bench.launchers.nixl import NixlPair
from bench.launchers.plain import Plain
from bench.launchers.system import Setting, System
from bench.prompts import Prompts

SYSTEMS: Mapping[str, Callable[[Setting, Client], System]] = {
    "plain": Plain,
    "nixl": NixlPair,
    "lmcache": LMCachePair,
    "kvferry": Kvferry,
}
NAMES = ("miss", "hit", "handover", "mixed", "reuse", "greedy", "soak", "dram")
REQUEST_SECONDS = 600.0
FEWEST_ROUNDS = 3


class CannotMeasure(BenchError):
    """The benchmark cannot run here; the message is one line that says what is missing."""


def plan(chosen: argparse.Namespace) -> list[Phase]:
    """The phases of a run: the main one, and one for greedy output in each other dtype."""
    order = random.Random(f"{chosen.seed}/order")
    greedy = {"float32": Greedy("float32", "fp32"), "bfloat16": Greedy("bfloat16", "bf16")}
    parts: list[AnyPart] = [
        Miss(),
        Hit(),
        Handover(),
        Mixed(),
        Reuse(),
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
    return (not chosen.only or name in chosen.only) and name not in chosen.skip


def bounds_of(chosen: argparse.Namespace) -> list[Bound]:
    """The bounds of the parts that run."""
    whole = Bound("total_minutes", "", "at most", TOTAL_MINUTES)
    return [*(bound for bound in BOUNDS if chosen_part(chosen, bound.part)), whole]


async def measure(
    chosen: argparse.Namespace,
    amounts: Amounts,
    phases: Sequence[Phase],
    folder: Path,
    say: Say,
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

        runner = Runner(build, Prompts(chosen.model / "tokenizer.json"), chosen.seed, amounts, say)
        try:
            for phase in phases:
                await runner.run(phase)
        except asyncio.CancelledError:
            runner.figures.complaints.append("interrupted: the rest was not measured")
    taken = result(chosen, amounts, phases, runner.figures, (time.monotonic() - began) / 60)
    return {**taken, "environment": described}


def result(
    chosen: argparse.Namespace,
    amounts: Amounts,
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
        "benchmark": "headline",
        "metrics": metrics,
        "verdicts": [asdict(verdict(bound, metrics)) for bound in bounds_of(chosen)],
        "complaints": complaints,
        "specified_workload": not differences(amounts) and chosen.rounds >= FEWEST_ROUNDS,
        "workload": asdict(amounts),
        "varied": differences(amounts),
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
    """Raises CannotMeasure where a system cannot be run here."""
    if not (chosen.model / "tokenizer.json").is_file():
        raise CannotMeasure(f"no model in {chosen.model}: run `make install`, or give --model DIR")
    needed = {turn.system for phase in phases for turn in phase.turns}
    if "nixl" in needed and not nixl.installed():
        raise CannotMeasure(nixl.ADVICE)
