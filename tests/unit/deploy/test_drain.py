"""What an engine still has, by its own metrics."""

from __future__ import annotations

import pytest

from deploy import drain

METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 3.0
"""


def test_requests_of_all_engines_are_counted() -> None:
    assert drain.requests(METRICS) == 6


@pytest.mark.parametrize("metrics", ["", "up 1\n", "no metrics at all {"])
def test_what_does_not_say_is_not_taken_for_idle(metrics: str) -> None:
    assert drain.requests(metrics) is None
