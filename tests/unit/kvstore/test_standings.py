"""Epochs only rise, shares are the last told, and nobody's epoch is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import standings
from kvstore.errors import WireError
from kvstore.messages import Standing
from kvstore.standings import PART, Standings, parts

TAGS = [f"{number:016x}" for number in range(4)]
STANDING = st.builds(
    Standing,
    st.sampled_from(TAGS),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.5, 1.0]),
)


@given(st.lists(STANDING))
def test_the_highest_epoch_and_the_last_shares(told: list[Standing]) -> None:
    known = Standings()
    for standing in told:
        known.take([standing])
    for tag in TAGS:
        mine = [standing for standing in told if standing.tag == tag]
        epoch = max((standing.epoch for standing in mine), default=0)
        last = mine[-1] if mine else Standing(tag, 0)
        assert known.of(tag) == Standing(tag, epoch, last.floor, last.limit)


def test_only_what_differs_is_news() -> None:
    known, standing = Standings(), Standing(TAGS[0], 2)
    assert known.take([standing]) == [standing]
    assert known.take([standing, Standing(TAGS[0], 1), Standing(TAGS[1], 0)]) == []
    assert len(list(known)) == 1


def test_at_the_bound_one_more_is_refused_and_none_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standings, "MAX_TAGS", 2)
    known = Standings()
    known.take([Standing(TAGS[0], 1), Standing(TAGS[1], 1)])
    with pytest.raises(WireError):
        known.take([Standing(TAGS[2], 1)])
    known.take([Standing(TAGS[0], 2)])
    assert [known.of(tag).epoch for tag in TAGS] == [2, 1, 0, 0]


def test_parts_fit_into_messages() -> None:
    many = [Standing(f"{number:016x}", 1) for number in range(2 * PART + 1)]
    assert [len(part) for part in parts(many)] == [PART, PART, 1]
