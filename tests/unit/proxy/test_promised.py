"""What is under way is known by its beginning, until it is over; against plain lists."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from proxy import promised
from proxy.promised import Life, Promised

WORKERS: list[Life] = [("a", "g0"), ("a", "g1"), ("b", "g0")]


def chain(blocks: Sequence[int]) -> bytes:
    """Names as block hashes are: each says what all before it are."""
    names = [hashlib.sha256(bytes(blocks[: at + 1])).digest()[:16] for at in range(len(blocks))]
    return b"".join(names)


prompts = st.lists(st.integers(min_value=0, max_value=1), max_size=20)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    for at, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return at
    return min(len(one), len(other))


@given(
    under_way=st.lists(st.tuples(st.sampled_from(WORKERS), prompts), max_size=12),
    over=st.sets(st.integers(min_value=0, max_value=11)),
    asked=prompts,
)
def test_against_a_plain_model(
    under_way: list[tuple[Life, list[int]]], over: set[int], asked: list[int]
) -> None:
    known = Promised()
    for key, (worker, blocks) in enumerate(under_way):
        known.add(key, worker, chain(blocks))
    for key in over:
        known.remove(key)
    expected: dict[Life, int] = {}
    for key, (worker, blocks) in enumerate(under_way):
        length = common(asked, blocks)
        if key not in over and length:
            expected[worker] = max(length, expected.get(worker, 0))
    assert known.lengths(chain(asked)) == expected


def test_of_many_alike_the_most_alike_is_found() -> None:
    """All share a system prompt; the one that goes on as this one does came first."""
    known = Promised()
    known.add(0, ("holder", "g"), chain([7, 1, 2, 3, 4, 5]))
    for key in range(1, 1 + 4 * promised.MOST_COMPARED):
        known.add(key, ("other", "g"), chain([7, 100 + key % 100, key // 100]))
    assert known.lengths(chain([7, 1, 2, 3, 4, 9])) == {("holder", "g"): 5, ("other", "g"): 1}


def test_of_too_many_that_are_equally_alike_the_latest_are_compared() -> None:
    known = Promised()
    for key in range(2 * promised.MOST_COMPARED):
        known.add(key, (f"w{key}", "g"), chain([7, 1, key]))
    found = known.lengths(chain([7, 1, 2, 3]))
    latest = range(promised.MOST_COMPARED, 2 * promised.MOST_COMPARED)
    assert set(found) == {(f"w{key}", "g") for key in latest}


def test_nothing_is_left_of_what_is_over() -> None:
    known = Promised()
    known.add(1, WORKERS[0], chain([1, 2, 3]))
    known.add(2, WORKERS[0], b"")
    known.remove(1)
    known.remove(1)
    known.remove(2)
    assert len(known) == 0
    assert not known._alike
