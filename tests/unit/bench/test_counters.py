"""Reading an engine's Prometheus page."""

import pytest

from bench.counters import CacheCounters, parse

PAGE = """\
# HELP vllm:prefix_cache_queries_total Prefix cache queries.
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 2500.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.79e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 2496.0
vllm:external_prefix_cache_queries_total{engine="0",model_name="m"} 4.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="1456",user="a b"} 1.0
python_info{version="3.11"} 1.0
"""


def test_reads_what_an_engine_counts() -> None:
    assert parse(PAGE) == CacheCounters(2500, 2496, 4, 3, 0.25, 1456, 32)


def test_counts_are_differences_and_levels_are_not() -> None:
    later = CacheCounters(5000, 2496, 10, 9, 0.5, 1456, 32)
    assert later.since(parse(PAGE)) == CacheCounters(2500, 0, 6, 6, 0.5, 1456, 32)


def test_another_page_is_refused() -> None:
    with pytest.raises(ValueError, match="not the metrics page"):
        parse("up 1\n")
