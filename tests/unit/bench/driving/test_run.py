"""What a run learns of its server."""

from bench.driving.run import template_tokens
from tests.unit.bench.measures.records import failed, record


def test_a_template_is_what_the_server_counts_beyond_the_prompt() -> None:
    seen = [record(n, prompt_tokens=131 + n % 2) for n in range(5)]
    assert template_tokens([*seen, record(9, prompt_tokens=900, turn=3), failed(10)]) == 31


def test_a_server_that_counts_nothing_or_less_adds_nothing() -> None:
    assert template_tokens([failed()]) == 0
    assert template_tokens([record(prompt_tokens=90)]) == 0
