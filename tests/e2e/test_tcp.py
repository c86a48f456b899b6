"""The same path across TCP, where every socket of ours speaks CURVE."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine


def test_kv_ships_over_tcp(tcp_cluster: LiveCluster, prompt: Callable[[int], list[int]]) -> None:
    tokens: list[int] = []
    for length in (65, 600):
        tokens = prompt(length)
        reply = tcp_cluster.stream("red", tokens, max_tokens=16)
        assert (reply.status, reply.path) == (200, "disaggregated")
        assert reply.text == tcp_cluster.alone(tokens, f"alone-{length}", max_tokens=16)
    tcp_cluster.forget("decode-0")
    assert tcp_cluster.complete("red", tokens).cached >= 576
    assert tcp_cluster.complete("blue", tokens).cached == 0
