"""Comparing answers token by token."""

import pytest

from bench.headline.amounts import SPECIFIED
from bench.headline.part import Judgement
from bench.headline.parts.greedy import Answer, Choice, Greedy, compare, lengths


def choice(token: str, **best: float) -> Choice:
    return Choice(token, best)


SAME = Answer(9, (choice("a", a=-0.1, b=-3.0), choice("c", c=-0.7, d=-0.8)))
TIE = Answer(9, (choice("a", a=-0.1, b=-3.0), choice("d", d=-0.7, c=-0.75)))
OTHER = Answer(9, (choice("z", z=-0.1, y=-3.0), choice("c", c=-0.7, d=-0.8)))
SHORT = Answer(9, (choice("a", a=-0.1, b=-3.0),))


def judged(dtype: str, answer: Answer) -> Judgement:
    part = Greedy(dtype, "x")
    return part.judge({"plain": {1: [SAME, SAME]}, "kvferry": {1: [SAME, answer]}})


def test_equal_answers_have_no_difference() -> None:
    assert compare([SAME], [SAME]) == []


def test_a_difference_tells_where_and_how_close_the_reference_was() -> None:
    (difference,) = compare([SAME], [TIE])
    assert (difference.position, difference.reference, difference.other) == (1, "c", "d")
    assert difference.gap == pytest.approx(0.1)


def test_a_token_the_reference_did_not_consider_has_no_gap() -> None:
    (difference,) = compare([SAME], [OTHER])
    assert difference.gap is None


def test_a_missing_token_is_a_difference() -> None:
    (difference,) = compare([SAME], [SHORT])
    assert difference.position == 1
    assert difference.gap is None


def test_a_near_tie_counts_against_equality_but_is_explained() -> None:
    outcome = judged("bfloat16", TIE)
    assert outcome.metrics == {"greedy_equal_x": 0.5}
    assert outcome.complaints == ()


def test_an_unexplained_difference_is_complained_about() -> None:
    assert judged("bfloat16", OTHER).complaints
    assert judged("float32", TIE).complaints  # 0.1 is no rounding in float32


def test_without_the_other_system_there_is_no_metric() -> None:
    assert Greedy("float32", "x").judge({"plain": {1: [SAME]}}).metrics == {}


def test_lengths_go_from_one_token_to_the_longest() -> None:
    found = lengths(SPECIFIED)
    assert len(found) == 100
    assert (min(found), max(found)) == (1, 4000)
