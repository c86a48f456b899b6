"""How long prompts and answers are."""

import random
import re
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.errors import BadLoad
from bench.load.lengths import LONGEST, WIDEST_SIGMA, Lengths, parse

repeatable = settings(deadline=None, derandomize=True)


def drawn(text: str, count: int = 20_000) -> list[int]:
    source = random.Random(1)
    lengths = parse(text)
    return [lengths.draw(source) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", Lengths("uniform", 512, 512)),
        ("1", Lengths("uniform", 1, 1)),
        (str(LONGEST), Lengths("uniform", LONGEST, LONGEST)),
        ("200-1200", Lengths("uniform", 200, 1200)),
        ("normal:512:64", Lengths("normal", 512, 64)),
        ("normal:512.5:0", Lengths("normal", 512.5, 0)),
        ("lognormal:512:0.8", Lengths("lognormal", 512, 0.8)),
    ],
)
def test_a_distribution_is_one_word(text: str, expected: Lengths) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", f"lengths go from 1 to {LONGEST}"),
        ("0-5", f"lengths go from 1 to {LONGEST}"),
        ("9-5", "the smaller one first"),
        (str(LONGEST + 1), f"lengths go from 1 to {LONGEST}"),
        ("normal:0.5:3", f"lengths go from 1 to {LONGEST}"),
        ("lognormal:512:400", "a sigma is 10 at most"),
        ("", "a length is 512, 200-1200, normal:MEAN:DEVIATION or lognormal:MEDIAN:SIGMA"),
        ("-5", "a length is 512"),
        ("5-", "a length is 512"),
        (" 5", "a length is 512"),
        ("5\n", "a length is 512"),
        ("5.5", "a length is 512"),
        ("normal:512", "a length is 512"),
        ("normal:512:-1", "a length is 512"),
        ("normal:512:nan", "a length is 512"),
        ("uniform:1:2", "a length is 512"),
        ("9" * 5000, "a length is 512"),
        (f"normal:512:{'9' * 400}", "a length is 512"),
    ],
)
def test_anything_else_is_refused_with_advice(text: str, message: str) -> None:
    with pytest.raises(BadLoad, match=re.escape(message)) as refused:
        parse(text)
    assert repr(text) in str(refused.value)


def test_one_number_is_always_that() -> None:
    assert set(drawn("512", 100)) == {512}


def test_a_range_has_both_ends_and_all_between_alike() -> None:
    lengths = drawn("3-12")
    assert set(lengths) == set(range(3, 13))
    assert statistics.fmean(lengths) == pytest.approx(7.5, rel=0.02)


def test_normal_lengths_have_their_mean_and_deviation() -> None:
    lengths = drawn("normal:512:64")
    assert statistics.fmean(lengths) == pytest.approx(512, rel=0.01)
    assert statistics.stdev(lengths) == pytest.approx(64, rel=0.03)


def test_lognormal_lengths_have_their_median_and_sigma() -> None:
    lengths = sorted(drawn("lognormal:512:0.8"))
    assert statistics.median(lengths) == pytest.approx(512, rel=0.03)
    # One sigma above the median: 512 * e^0.8.
    assert lengths[round(0.8413 * len(lengths))] == pytest.approx(1139, rel=0.04)


@repeatable
@given(
    st.one_of(
        st.builds(
            "normal:{}:{}".format,
            st.integers(1, LONGEST),
            st.floats(0, 1e8).map(lambda deviation: f"{deviation:.3f}"),
        ),
        st.builds(
            "lognormal:{}:{}".format,
            st.integers(1, LONGEST),
            st.floats(0, WIDEST_SIGMA).map(lambda sigma: f"{sigma:.3f}"),
        ),
    ),
    st.integers(0, 2**32),
)
def test_every_draw_is_a_length(text: str, seed: int) -> None:
    source, lengths = random.Random(seed), parse(text)
    for _ in range(20):
        length = lengths.draw(source)
        assert type(length) is int
        assert 1 <= length <= LONGEST
