"""What an unlimited cache would hold, against a simulation with the real texts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.schedule import Planned, Schedule, Segment, contexts, with_shared
from bench.load.workload import Workload, build
from tests.unit.bench.load import brute_force

MIXES: list[dict[str, Any]] = [
    {"hit_ratio": 0.3},
    {"hit_ratio": 0.3, "start": "cold"},
    {"hit_ratio": 0.8, "start": "primed", "prefixes": 3},
    {"hit_ratio": 0.5, "start": "primed", "tenants": 4, "tenant_skew": 1.0},
    {"hit_ratio": 0.5, "start": "cold", "tenants": 4, "prefixes": 2},
    {"turns": 3, "output": "20"},
    {"turns": 4, "hit_ratio": 0.4, "tenants": 3, "output": "3-30", "start": "primed"},
    {"hit_ratio": 0.9, "prompt": "lognormal:100:1", "prefixes": 1},
    {"hit_ratio": 0.0},
]

repeatable = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_intended_hit_ratio_is_that_of_the_texts(mix: dict[str, Any], seed: int) -> None:
    schedule = build(Workload(**{"requests": 250, "prompt": "60-140", "seed": seed, **mix}))
    assert schedule.intended_hit_ratio() == pytest.approx(brute_force.hit_ratio(schedule), abs=0.01)


def request(number: int, *segments: Segment, tenant: int = 0, **changes: Any) -> Planned:
    fields: dict[str, Any] = {"conversation": number, "output_tokens": 3, **changes}
    return Planned(number=number, tenant=tenant, prompt=segments, **fields)


planned_segments = st.lists(
    st.builds(Segment, st.sampled_from("abc"), st.sampled_from([1, 20, 40])), min_size=1, max_size=4
)


@repeatable
@given(st.lists(st.tuples(planned_segments, st.integers(0, 1)), min_size=1, max_size=8))
def test_whatever_is_asked_as_much_is_found_as_the_texts_share(
    asked: list[tuple[list[Segment], int]],
) -> None:
    requests = with_shared(
        (),
        [
            request(number, *segments, tenant=tenant)
            for number, (segments, tenant) in enumerate(asked)
        ],
    )
    schedule = Schedule(pacing="open", requests=requests)
    for planned, (found, _) in zip(requests, brute_force.shared(schedule), strict=True):
        # Texts of different keys may begin with the same few words by chance.
        assert planned.shared_tokens <= found <= planned.shared_tokens + 6


def test_a_longer_cut_finds_the_shorter_one_and_the_other_way_round() -> None:
    told = with_shared(
        (),
        [
            request(0, Segment("p", 10), Segment("a", 5)),
            request(1, Segment("p", 30), Segment("b", 5)),
            request(2, Segment("p", 20), Segment("b", 5)),
        ],
    )
    assert [planned.shared_tokens for planned in told] == [0, 10, 20]


def test_text_after_a_difference_is_not_found() -> None:
    told = with_shared(
        (),
        [
            request(0, Segment("p", 10), Segment("same", 5)),
            request(1, Segment("q", 10), Segment("same", 5)),
        ],
    )
    assert told[1].shared_tokens == 0


def test_tenants_find_nothing_of_each_other() -> None:
    told = with_shared((), [request(n, Segment("p", 10), tenant=n % 2) for n in range(4)])
    assert [planned.shared_tokens for planned in told] == [0, 0, 10, 10]


def test_what_was_asked_before_is_found() -> None:
    ahead = request(0, Segment("p", 10), conversation=-1)
    told = with_shared([ahead], [request(0, Segment("p", 10), Segment("a", 1))])
    assert told[0].shared_tokens == 10


def test_a_later_turn_finds_its_conversation_with_the_last_answer() -> None:
    turns = [
        request(0, Segment("a", 10), conversation=5, output_tokens=7),
        request(1, Segment("x", 10), conversation=6, output_tokens=7),
        request(2, Segment("b", 4), conversation=5, turn=1, output_tokens=1),
        request(3, Segment("c", 2), conversation=5, turn=2, output_tokens=1),
    ]
    told = with_shared((), turns)
    assert contexts(turns) == [10, 10, 10 + 7 + 4, 21 + 1 + 2]
    assert [planned.shared_tokens for planned in told] == [0, 0, 17, 22]
    schedule = Schedule(pacing="users", requests=told, in_flight=1)
    assert schedule.intended_hit_ratio() == pytest.approx((17 + 22) / (10 + 10 + 21 + 24))


def test_nothing_asked_is_nothing_found() -> None:
    assert Schedule(pacing="open", requests=()).intended_hit_ratio() == 0.0


def test_servers_find_whole_blocks_and_never_the_last_token() -> None:
    same = [request(n, Segment("p", 40)) for n in range(2)]
    told = Schedule(pacing="open", requests=with_shared((), same))
    assert told.intended_hit_ratio() == pytest.approx(39 / 80)
    assert told.intended_hit_ratio(16) == pytest.approx(32 / 80)
    assert told.intended_hit_ratio(64) == 0.0


def test_a_templates_tokens_are_shared_by_all() -> None:
    told = Schedule(pacing="open", requests=with_shared((), [request(0, Segment("p", 40))]))
    assert told.intended_hit_ratio(16, template_tokens=40) == pytest.approx(32 / 80)
    assert told.intended_hit_ratio(16) == 0.0
