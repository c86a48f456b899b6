"""Stand-ins for systems under measurement."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from bench.client import Body, Timeline
from bench.counters import CacheCounters
from bench.headline.amounts import SPECIFIED
from bench.processes import Child
from bench.prompts import Prompt


def timeline(**changes: Any) -> Timeline:
    fields: dict[str, Any] = {
        "intended": 0.0,
        "sent": 0.0,
        "tokens": (1.0, 1.1, 1.2),
        "finished": 1.3,
        "status": 200,
        "error": "",
        "prompt_tokens": 0,
        "completion_tokens": 3,
        "cached_tokens": 0,
        "headers": {},
    }
    return Timeline(**{**fields, **changes})


class FakeSystem:
    """Answers everything at once. ``prompts`` are those it was asked, ``events`` its life."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[str] = []
        self.prompts: list[str] = []
        self.counts = CacheCounters(0, 0, 0, 0, 0.0, 100, 32)

    async def start(self) -> None:
        self.events.append("start")

    async def stop(self) -> None:
        self.events.append("stop")

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        self.prompts.append(body["prompt"])
        return timeline(prompt_tokens=SPECIFIED.warmup_tokens)

    async def complete(self, body: Body, lane: int = 0) -> Mapping[str, Any]:
        raise NotImplementedError

    async def forget(self) -> None:
        self.events.append("forget")

    async def counters(self) -> Mapping[str, CacheCounters]:
        return {"prefill": self.counts, "decode": self.counts}

    def children(self) -> Sequence[Child]:
        return []


class FakePrompts:
    """Texts of no length at all, but new ones."""

    def make(self, tokens: int, source: random.Random) -> Prompt:
        return Prompt(f"{source.random()}", tokens)
