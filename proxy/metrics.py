"""What is counted, and the one line logged, for every request. Never a prompt, key or salt."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kvstore.messages import Tier
from proxy.pace import Prediction
from proxy.usage import Account

log = logging.getLogger("kvferry.proxy")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CLIENT_GONE = 499

_STAGE_SECONDS = (0.001, 0.0025, 0.005)
_RATIOS = (0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.11, 1.25, 1.5, 2, 4)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass
class Story:
    """What is told of one request once it has ended; filled in as it goes.

    ``path`` stays "none" for a request that reached no worker; ``reason`` is why it was not
    disaggregated, "" if it was. Times are on the proxy's monotonic clock, in seconds; ``stages``
    are milliseconds (``proxy.stages``), ``tiers`` the cached tokens by where they lay;
    ``predicted``: what it should have found and taken.
    """

    request_id: str
    tenant: str
    route: str
    began: float
    path: str = "none"
    reason: str = ""
    status: int = CLIENT_GONE
    first_token: float | None = None
    prefill: str = ""
    decode: str = ""
    account: Account | None = None
    tiers: Mapping[Tier, int] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    predicted: Prediction | None = None


class Metrics:
    """Prometheus metrics of one proxy, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "kvferry_requests",
            "Requests by path taken, why they were not disaggregated, tenant and status.",
            ["path", "reason", "tenant", "status"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "kvferry_tokens",
            "Tokens: prompt, cached (of the prompt, computed nowhere), completion.",
            ["kind", "tenant"],
            registry=self.registry,
        )
        self._first_token = Histogram(
            "kvferry_first_token_seconds",
            "From the request's arrival to the first token.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "kvferry_ttft_stage_seconds",
            "Parts of the time to the first token; an answer that is not streamed lacks its last.",
            ["stage"],
            buckets=_STAGE_SECONDS + _SECONDS,
            registry=self.registry,
        )
        self._ratio = Histogram(
            "kvferry_predicted_first_token_ratio",
            "The time to the first token, as predicted when the plan was made, over the real one.",
            ["path"],
            buckets=_RATIOS,
            registry=self.registry,
        )
        self._foretold = Counter(
            "kvferry_predicted_cached",
            "Requests by whether as many tokens were cached as predicted.",
            ["path", "outcome"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "kvferry_request_seconds",
            "From the request's arrival to its end.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._leg_failures = Counter(
            "kvferry_leg_failures",
            "Legs that failed, by role and reason.",
            ["role", "reason"],
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "kvferry_requests_in_flight", "Requests being served.", registry=self.registry
        )
        self._waiting = Gauge(
            "kvferry_requests_waiting",
            "Requests that wait for a prefill worker.",
            registry=self.registry,
        )
        self._workers = Gauge(
            "kvferry_workers_ready", "Live and ready workers.", ["role"], registry=self.registry
        )

    def began(self) -> None:
        """A request was admitted."""
        self._in_flight.inc()

    def ended(self, story: Story, now: float) -> None:
        """The same request has ended; writes its log line."""
        self._in_flight.dec()
        self.told(story)
        taken = now - story.began
        self._duration.labels(story.path).observe(taken)
        first_token = None
        if story.first_token is not None:
            first_token = story.first_token - story.began
            self._first_token.labels(story.path).observe(first_token)
        for stage, milliseconds in story.stages.items():
            self._stages.labels(stage).observe(milliseconds / 1000)
        self._compare(story, first_token)
        books = story.account
        if books is not None:
            for kind in ("prompt", "cached", "completion"):
                self._tokens.labels(kind, story.tenant).inc(getattr(books, kind))
        log.info(
            "request=%s tenant=%s route=%s status=%d path=%s reason=%s prefill=%s decode=%s "
            "prompt=%s cached=%s completion=%s first_token_ms=%s total_ms=%.1f predicted=%s",
            story.request_id,
            story.tenant,
            story.route,
            story.status,
            story.path,
            story.reason or "-",
            story.prefill or "-",
            story.decode or "-",
            books.prompt if books else "-",
            books.cached if books else "-",
            books.completion if books else "-",
            "-" if first_token is None else f"{first_token * 1000:.1f}",
            taken * 1000,
            "-" if (made := story.predicted) is None else f"{made.cached}/{made.ttft * 1000:.1f}",
        )

    def _compare(self, story: Story, first_token: float | None) -> None:
        predicted = story.predicted
        if predicted is None or story.account is None:
            return
        outcome = "equal" if story.account.cached == predicted.cached else "different"
        self._foretold.labels(story.path, outcome).inc()
        if first_token:
            self._ratio.labels(story.path).observe(predicted.ttft / first_token)

    def told(self, story: Story) -> None:
        """Counts a request, also one that was never admitted."""
        self._requests.labels(story.path, story.reason, story.tenant, str(story.status)).inc()

    def leg_failed(self, role: str, reason: str) -> None:
        """A leg failed, whatever became of its request."""
        self._leg_failures.labels(role, reason).inc()

    def exposition(self, prefill: int, decode: int, waiting: int) -> bytes:
        """All metrics as text, with the numbers of ready workers and waiting requests as of now."""
        self._waiting.set(waiting)
        self._workers.labels("prefill").set(prefill)
        self._workers.labels("decode").set(decode)
        return generate_latest(self.registry)
