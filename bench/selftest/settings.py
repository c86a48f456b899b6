"""What the audit does, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError

Say = Callable[[str], None]
"""Given one line of progress at a time."""


class SelftestFailed(BenchError):
    """A part of the audit did not come to its end; the message says why and what to do."""


@dataclass(frozen=True)
class Measured:
    """``metrics`` by name; ``settings``: all that was chosen, to compare like with like."""

    metrics: Mapping[str, float]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ClientSettings:
    """Two open-loop loads. The lag's stub sends each token by itself, as servers do, but soon. The
    bias's stub streams slowly enough
    that its rate keeps ``bias_streams`` under way at once; the seconds it takes until they are, are
    left out.
    """

    lag_rate: float = 500.0
    lag_seconds: float = 10.0
    lag_output_tokens: int = 8
    lag_itl_ms: float = 1.0
    bias_streams: int = 200
    bias_ttft_ms: float = 50.0
    bias_itl_ms: float = 50.0
    bias_output_tokens: int = 16
    bias_seconds: float = 10.0
    bias_settling_seconds: float = 2.0
    prompt_tokens: int = 32
    seed: int = 0

    @property
    def bias_rate(self) -> float:
        """Requests a second that keep so many streams under way (Little's law)."""
        milliseconds = self.bias_ttft_ms + (self.bias_output_tokens - 1) * self.bias_itl_ms
        return self.bias_streams / (milliseconds / 1e3)


@dataclass(frozen=True)
class PeerSettings:
    """Closed loops of one ``concurrency``, each client on one core, against a stub that sends a
    token every ``itl_ms``: all of an answer at once would be less to read than servers send.

    ``requests``: by client, so many that each takes seconds. ``tokenizer``: a model's folder; the
    peers make their prompts with it. ``guidellm``: its program, in an environment of its own.
    """

    tokenizer: Path
    guidellm: Path
    rounds: int = 3
    concurrency: int = 64
    prompt_tokens: int = 32
    output_tokens: int = 16
    itl_ms: float = 1.0
    requests: Mapping[str, int] = field(
        default_factory=lambda: {"kvferry": 8_000, "vllm_bench": 4_000, "guidellm": 1_000}
    )
    seed: int = 0
