"""Public traces as schedules: Mooncake's and Azure's requests.

Lengths can be scaled, block by block, so that requests which shared a prefix still do.
"""

from __future__ import annotations

import csv
import datetime
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from bench.load.errors import BadLoad
from bench.load.lengths import LONGEST
from bench.load.schedule import Planned, Schedule, Segment, with_shared

MOONCAKE_BLOCK = 512
"""Tokens that one id of a Mooncake trace stands for."""

LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class Traced:
    """One request of a trace. ``at``: seconds since its first. ``blocks``: identities of its
    prompt's blocks of ``MOONCAKE_BLOCK`` tokens, the last one shorter; empty where nobody told."""

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()

    def tenant(self, number: int, tenants: int) -> int:
        """Whose request ``number`` of a trace is: its conversation, which the block after the one
        that all share tells, is dealt to one of ``tenants``."""
        conversation = self.blocks[1 if len(self.blocks) > 1 else 0] if self.blocks else number
        return random.Random(conversation).randrange(tenants)


@dataclass(frozen=True)
class Replay:
    """How a trace is replayed. ``speedup`` divides times; ``scale`` multiplies lengths; ``first``
    seconds are skipped, then ``seconds`` or ``requests`` taken (None: all); conversations are
    dealt to ``tenants`` by the block after the one that all share."""

    speedup: float = 1.0
    scale: float = 1.0
    first: float = 0.0
    seconds: float | None = None
    requests: int | None = None
    tenants: int = 1


def read(path: Path) -> list[Traced]:
    """A trace by its format: Mooncake's JSON lines, or Azure's CSV. Raises BadLoad."""
    try:
        found = list(_mooncake(path) if path.suffix == ".jsonl" else _azure(path))
    except OSError as error:
        raise BadLoad(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadLoad(f"{path} is no text: {error}") from None
    if not found:
        raise BadLoad(f"{path} holds no request")
    begin = min(traced.at for traced in found)
    found.sort(key=lambda traced: traced.at)
    return [
        Traced(traced.at - begin, traced.prompt_tokens, traced.output_tokens, traced.blocks)
        for traced in found
    ]


def replayed(trace: Sequence[Traced], replay: Replay) -> Schedule:
    """The schedule of a trace. Raises BadLoad where nothing is left of it."""
    if not (0 < replay.speedup < math.inf and 0 < replay.scale <= LARGEST_SCALE):
        raise BadLoad(f"speedup and scale are above 0, and scale is {LARGEST_SCALE:g} at most")
    if replay.tenants < 1 or (replay.requests is not None and replay.requests < 1):
        raise BadLoad("tenants and requests: 1 at least")
    end = math.inf if replay.seconds is None else replay.first + replay.seconds
    chosen = [traced for traced in trace if replay.first <= traced.at < end][: replay.requests]
    if not chosen:
        raise BadLoad("no request of the trace lies in the stretch asked for")
    requests = tuple(_planned(number, traced, replay) for number, traced in enumerate(chosen))
    return Schedule(
        pacing="open",
        requests=with_shared((), requests),
        tenants=tuple(f"tenant-{number}" for number in range(replay.tenants)),
    )


def _planned(number: int, traced: Traced, replay: Replay) -> Planned:
    return Planned(
        number=number,
        tenant=traced.tenant(number, replay.tenants),
        conversation=number,
        at=(traced.at - replay.first) / replay.speedup,
        prompt=tuple(_segments(number, traced, replay.scale)),
        output_tokens=_scaled(traced.output_tokens, replay.scale),
    )


def _segments(number: int, traced: Traced, scale: float) -> Iterator[Segment]:
    if not traced.blocks:
        yield Segment(f"own-{number}", _scaled(traced.prompt_tokens, scale))
        return
    left = traced.prompt_tokens
    for block in traced.blocks:
        tokens = min(MOONCAKE_BLOCK, left)
        if tokens <= 0:
            break
        yield Segment(f"block-{block}", _scaled(tokens, scale))
        left -= tokens
    if left > 0:
        yield Segment(f"own-{number}", _scaled(left, scale))


def _scaled(tokens: int, scale: float) -> int:
    return max(1, round(tokens * scale))


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=LONGEST)]


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: tuple[int, ...] = ()


def _mooncake(path: Path) -> Iterator[Traced]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                read_line = decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise BadLoad(f"{path}, line {number}: {error}") from None
            yield Traced(
                read_line.timestamp / 1000,
                max(1, read_line.input_length),
                max(1, read_line.output_length),
                read_line.hash_ids,
            )


def _azure(path: Path) -> Iterator[Traced]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        for row in rows:
            try:
                moment = datetime.datetime.fromisoformat(row["TIMESTAMP"])
                at = moment.replace(tzinfo=datetime.UTC).timestamp()
                prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, ValueError, TypeError) as error:
                line = f"{path}, line {rows.line_num}"
                raise BadLoad(f"{line}: no line of an Azure trace: {error}") from None
            if not (0 <= prompt <= LONGEST and 0 <= output <= LONGEST):
                raise BadLoad(f"{path}, line {rows.line_num}: lengths go from 0 to {LONGEST}")
            yield Traced(at, max(1, prompt), max(1, output))
