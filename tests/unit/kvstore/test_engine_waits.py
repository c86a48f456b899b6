"""A CPU engine's processes sleep between two looks at their queue, and only where we know it."""

from __future__ import annotations

import logging
import time
from types import ModuleType

import pytest
from vllm.distributed.device_communicators import shm_broadcast

from kvstore.engine_waits import NAP_SECONDS, nap, nap_between_looks


def test_the_installed_vllm_waits_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has just read looks again after a nap: vLLM's own code calls it."""
    monkeypatch.setattr(shm_broadcast, "sched_yield", shm_broadcast.sched_yield)
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    nap_between_looks(shm_broadcast)
    reader = shm_broadcast.SpinCondition.__new__(shm_broadcast.SpinCondition)
    reader.is_reader, reader.busy_loop_s, reader.last_read = True, 60.0, time.monotonic()
    reader.wait()
    assert naps == [NAP_SECONDS]


def test_an_unknown_queue_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    other = ModuleType("queues")
    with caplog.at_level(logging.WARNING, "kvferry.engine"):
        nap_between_looks(other)
    assert not hasattr(other, "sched_yield")
    assert "keep cores busy" in caplog.text


def test_a_known_queue_naps() -> None:
    queues = ModuleType("queues")
    queues.sched_yield = lambda: None  # type: ignore[attr-defined]
    nap_between_looks(queues)
    assert queues.sched_yield is nap
