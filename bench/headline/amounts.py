"""What is asked of the systems. The defaults are the specified workload; all else is a variation.

A variation (for a slower machine, or for a look at one effect) is written into the result and its
verdicts do not count as the benchmark's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from bench.errors import BenchError


class BadSetting(BenchError):
    """A setting on the command line does not exist or is no number."""


@dataclass(frozen=True)
class Amounts:
    """Token counts, request counts and rates (per second) of every part."""

    prompt_tokens: int = 2500
    uncached_requests: int = 3
    hit_requests: int = 5
    output_tokens: int = 16
    warmup_tokens: int = 600
    dram_prompts: int = 2
    mixed_requests: int = 24
    mixed_rate: float = 1.4
    mixed_shortest: int = 200
    mixed_longest: int = 1200
    mixed_output: int = 48
    reuse_requests: int = 24
    reuse_rate: float = 1.0
    reuse_prompt: int = 960
    reuse_output: int = 48
    reuse_fraction: float = 0.3
    greedy_prompts: int = 100
    greedy_longest: int = 4000
    greedy_output_fp32: int = 64
    greedy_output_bf16: int = 32
    greedy_in_flight: int = 4
    soak_clients: int = 20
    soak_seconds: float = 180.0
    soak_longest: int = 800
    soak_output: int = 48


SPECIFIED = Amounts()


def varied(changes: Sequence[str]) -> Amounts:
    """The specified workload with ``NAME=VALUE`` changes. Raises BadSetting."""
    known = {field.name: field.type for field in fields(Amounts)}
    values: dict[str, int | float] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in known:
            raise BadSetting(f"no setting {name!r}; there are {', '.join(known)}")
        try:
            values[name] = int(value) if known[name] == "int" else float(value)
        except ValueError:
            raise BadSetting(f"{name} takes a number, not {value!r}") from None
        if values[name] <= 0:
            raise BadSetting(f"{name} is above zero")
    return replace(SPECIFIED, **values)  # type: ignore[arg-type]


def differences(amounts: Amounts) -> dict[str, int | float]:
    """Settings that are not the specified ones."""
    specified = asdict(SPECIFIED)
    return {name: value for name, value in asdict(amounts).items() if value != specified[name]}
