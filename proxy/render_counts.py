"""Where prompts were rendered, and what is remembered of them. Never a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

Where = Literal["proxy", "worker"]


class RenderCounts:
    """Prometheus metrics in ``registry``. ``size`` tells the bytes remembered, when asked."""

    def __init__(self, registry: CollectorRegistry, size: Callable[[], int]) -> None:
        self._rendered = Counter(
            "kvferry_render",
            "Prompts by where they were rendered, and why not by the proxy.",
            ["where", "why"],
            registry=registry,
        )
        self._characters = Counter(
            "kvferry_render_characters",
            "Characters of prompts that the proxy rendered: known already, or tokenized.",
            ["found"],
            registry=registry,
        )
        remembered = Gauge(
            "kvferry_remembered_bytes",
            "Memory taken by recent prompts' texts and tokens.",
            registry=registry,
        )
        remembered.set_function(size)

    def rendered(self, where: Where, why: str) -> None:
        """A prompt was rendered; ``why`` is "" where the proxy did it."""
        self._rendered.labels(where, why).inc()

    def characters(self, known: int, new: int) -> None:
        """Of a prompt's text, so many characters were known, so many had to be tokenized."""
        self._characters.labels("yes").inc(known)
        self._characters.labels("no").inc(new)
