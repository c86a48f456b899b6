"""Synthetic workloads."""

import collections
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load import lengths
from bench.load.errors import BadLoad
from bench.load.schedule import Planned, Schedule, contexts
from bench.load.words import Words
from bench.load.workload import WARM_TOKENS, Workload, build

repeatable = settings(deadline=None, derandomize=True)


def loaded(**changes: Any) -> Schedule:
    return build(Workload(**{"requests": 200, "prompt": "20-100", "output": "5", **changes}))


def total(planned: Planned) -> int:
    return sum(segment.tokens for segment in planned.prompt)


workloads = st.builds(
    Workload,
    pacing=st.sampled_from(["open", "users", "batch"]),
    arrival=st.sampled_from(["poisson", "gamma", "constant"]),
    rate=st.floats(0.1, 100),
    requests=st.integers(1, 60),
    users=st.integers(1, 5),
    prompt=st.sampled_from(["1", "1-40", "normal:20:30", "lognormal:16:2"]),
    output=st.just("4"),
    hit_ratio=st.floats(0, 0.999),
    prefixes=st.integers(1, 4),
    turns=st.integers(1, 4),
    tenants=st.integers(1, 4),
    tenant_skew=st.floats(0, 5),
    start=st.sampled_from(["cold", "warm", "primed"]),
    warm_requests=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)


def encoded(schedule: Schedule) -> bytes:
    return msgspec.msgpack.encode(schedule)


@repeatable
@given(workloads)
def test_the_same_seed_gives_the_same_bytes(workload: Workload) -> None:
    assert encoded(build(workload)) == encoded(build(workload))


@pytest.mark.parametrize("pacing", ["open", "users", "batch"])
def test_another_seed_gives_another_schedule(pacing: str) -> None:
    one, other = loaded(pacing=pacing), loaded(pacing=pacing, seed=1)
    assert encoded(one) != encoded(other)
    assert one.digest() != other.digest()


def test_a_digest_tells_any_change() -> None:
    digests = {
        loaded(**changes).digest()
        for changes in (
            *({}, {"rate": 2.0}, {"output": "6"}, {"hit_ratio": 0.3}, {"tenants": 2}),
            *({"turns": 2}, {"start": "cold"}, {"pacing": "batch"}, {"requests": 199}),
        )
    }
    assert len(digests) == 9


@repeatable
@given(workloads)
def test_requests_are_numbered_and_conversations_whole(workload: Workload) -> None:
    schedule = build(workload)
    assert [planned.number for planned in schedule.requests] == list(range(workload.requests or 0))
    talks = collections.defaultdict(list)
    for planned in schedule.requests:
        talks[planned.conversation].append(planned)
    assert list(talks) == list(range(len(talks)))
    for talk in talks.values():
        assert [planned.turn for planned in talk] == list(range(len(talk)))
        assert len({planned.tenant for planned in talk}) == 1
    # Only the last conversation may be cut short.
    assert {len(talk) for talk in list(talks.values())[:-1]} <= {workload.turns}


@repeatable
@given(workloads)
def test_prompts_have_the_lengths_drawn(workload: Workload) -> None:
    one = msgspec.structs.replace(workload, prompt="7", hit_ratio=workload.hit_ratio)
    for planned in build(one).requests:
        assert total(planned) == 7
        assert all(segment.tokens >= 1 for segment in planned.prompt)
        # The last token is always one's own: a server computes it even if it knows the rest.
        assert planned.prompt[-1].key == f"own-{planned.number}"


@repeatable
@given(workloads)
def test_what_is_found_is_never_more_than_was_asked(workload: Workload) -> None:
    schedule = build(workload)
    for planned, prompt in zip(schedule.requests, contexts(schedule.requests), strict=True):
        assert 0 <= planned.shared_tokens < prompt
    assert 0 <= schedule.intended_hit_ratio() < 1


def test_lengths_follow_their_distributions() -> None:
    schedule = loaded(requests=2000, prompt="20-100", output="3-9", hit_ratio=0.4)
    prompts = [total(planned) for planned in schedule.requests]
    assert (min(prompts), max(prompts)) == (20, 100)
    assert {planned.output_tokens for planned in schedule.requests} == set(range(3, 10))


def test_tenants_never_share_text() -> None:
    schedule = loaded(hit_ratio=0.5, tenants=4, start="primed", warm_requests=0)
    owners: dict[str, int] = {}
    for planned in (*schedule.before, *schedule.requests):
        for segment in planned.prompt:
            assert owners.setdefault(segment.key, planned.tenant) == planned.tenant
    assert len({owner for key, owner in owners.items() if key.startswith("prefix")}) == 4
    beginnings = {
        (planned.tenant, Words("salt").prompt(planned.prompt)[:60]) for planned in schedule.requests
    }
    by_text = collections.Counter(text for _, text in beginnings)
    assert set(by_text.values()) == {1}


def test_each_tenant_has_all_its_prefixes_and_no_more() -> None:
    schedule = loaded(requests=400, hit_ratio=0.5, tenants=2, prefixes=3)
    found = {planned.prompt[0].key for planned in schedule.requests}
    assert found == {f"prefix-{tenant}-{prefix}" for tenant in range(2) for prefix in range(3)}


def test_skew_gives_the_first_tenants_more() -> None:
    schedule = loaded(requests=6000, tenants=3, tenant_skew=1.0, prompt="5")
    counts = collections.Counter(planned.tenant for planned in schedule.requests)
    # Shares of 1, 1/2 and 1/3.
    for tenant, share in enumerate((6 / 11, 3 / 11, 2 / 11)):
        assert counts[tenant] / 6000 == pytest.approx(share, abs=0.02)
    alike = collections.Counter(
        planned.tenant for planned in loaded(requests=6000, tenants=3, prompt="5").requests
    )
    assert max(alike.values()) - min(alike.values()) < 300
    assert schedule.tenants == ("tenant-0", "tenant-1", "tenant-2")


def test_extreme_skew_leaves_everything_to_the_first() -> None:
    schedule = loaded(tenants=5000, tenant_skew=5000.0)
    assert {planned.tenant for planned in schedule.requests} == {0}


def test_an_open_loop_has_times_of_its_own() -> None:
    schedule = loaded(requests=2000, rate=20.0, turns=2, think=1.5)
    assert (schedule.pacing, schedule.in_flight) == ("open", 0)
    first = [planned for planned in schedule.requests if planned.turn == 0]
    times = [planned.at for planned in first if planned.at is not None]
    assert len(times) == len(first) == 1000
    assert times == sorted(times)
    # The rate is that of conversations; turns follow as the answers come.
    assert 1000 / times[-1] == pytest.approx(20, rel=0.1)
    for planned in schedule.requests:
        assert (planned.at is None, planned.think) == ((True, 1.5) if planned.turn else (False, 0))


def test_only_a_first_turn_begins_with_what_others_share() -> None:
    for planned in loaded(turns=3, hit_ratio=0.5).requests:
        assert len(planned.prompt) == (1 if planned.turn else 2)


def test_seconds_end_a_run_before_the_first_arrival_beyond() -> None:
    schedule = loaded(requests=None, seconds=30.0, arrival="constant", rate=2.0)
    assert [planned.at for planned in schedule.requests] == [number / 2 for number in range(60)]
    poisson = loaded(requests=None, seconds=30.0, rate=20.0).requests
    assert 500 < len(poisson) < 700
    assert 29 < (poisson[-1].at or 0) < 30


def test_requests_end_a_run_in_the_middle_of_a_conversation() -> None:
    schedule = loaded(requests=10, turns=4)
    assert len(schedule.requests) == 10
    assert [planned.turn for planned in schedule.requests][-2:] == [0, 1]


def test_users_begin_conversations_themselves() -> None:
    schedule = loaded(pacing="users", users=7, rate=0.0)
    assert (schedule.pacing, schedule.in_flight) == ("users", 7)
    assert {planned.at for planned in schedule.requests} == {None}


def test_a_batch_is_wanted_at_once() -> None:
    schedule = loaded(pacing="batch", users=7, rate=0.0)
    assert (schedule.pacing, schedule.in_flight) == ("batch", 7)
    assert {planned.at for planned in schedule.requests} == {0.0}


def test_a_cold_start_sends_nothing_before() -> None:
    assert loaded(start="cold", hit_ratio=0.5).before == ()


def test_a_warm_start_sends_what_nobody_asks_again() -> None:
    schedule = loaded(start="warm", warm_requests=3, tenants=2, hit_ratio=0.5)
    assert [planned.phase for planned in schedule.before] == ["warm"] * 3
    assert [planned.tenant for planned in schedule.before] == [0, 1, 0]
    assert {total(planned) for planned in schedule.before} == {WARM_TOKENS}
    ahead = {segment.key for planned in schedule.before for segment in planned.prompt}
    asked = {segment.key for planned in schedule.requests for segment in planned.prompt}
    assert not ahead & asked
    assert schedule.requests == loaded(start="cold", tenants=2, hit_ratio=0.5).requests


def test_a_primed_start_leaves_no_first_use_to_miss() -> None:
    schedule = loaded(start="primed", hit_ratio=0.5, tenants=2, prefixes=3)
    assert [planned.phase for planned in schedule.before] == ["warm"] * 2 + ["prime"] * 6
    for planned in schedule.requests:
        assert planned.shared_tokens == planned.prompt[0].tokens == round(total(planned) * 0.5)
    assert schedule.intended_hit_ratio() == pytest.approx(0.5, abs=0.005)
    cold = loaded(start="cold", hit_ratio=0.5, tenants=2, prefixes=3)
    assert cold.intended_hit_ratio() < schedule.intended_hit_ratio()
    # Priming computes one token more than the prefix, as any request does.
    assert all(len(planned.prompt) == 2 for planned in schedule.before[2:])
    assert all(planned.output_tokens == 1 for planned in schedule.before)


@repeatable
@given(workloads)
def test_what_comes_before_is_told_apart_from_what_is_measured(workload: Workload) -> None:
    schedule = build(workload)
    assert all(planned.conversation < 0 for planned in schedule.before)
    assert len({planned.number for planned in schedule.before}) == len(schedule.before)
    assert all(planned.phase == "measured" for planned in schedule.requests)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hit_ratio": 1.0}, "a hit ratio is at least 0 and below 1"),
    ({"hit_ratio": -0.1}, "a hit ratio is at least 0 and below 1"),
    ({"hit_ratio": float("nan")}, "a hit ratio is at least 0 and below 1"),
    ({"requests": None}, "say either how many requests or how many seconds"),
    ({"seconds": 5.0}, "say either how many requests or how many seconds"),
    ({"pacing": "users", "requests": None}, "say how many requests"),
    ({"pacing": "users", "seconds": 5.0}, "only an open loop ends after seconds"),
    ({"pacing": "batch", "requests": None, "seconds": 5.0}, "say how many requests"),
    ({"requests": 0}, "a run has 1 to 1,000,000 requests, not 0"),
    ({"requests": -3}, "a run has 1 to 1,000,000 requests, not -3"),
    ({"requests": 1_000_001}, "a run has 1 to 1,000,000 requests, not 1,000,001"),
    ({"requests": None, "seconds": 1e9, "rate": 1.0}, "not 1,000,000,000"),
    ({"requests": None, "seconds": float("inf")}, "not inf"),
    ({"requests": None, "seconds": 4.0, "rate": 0.1}, "a run has 1 to 1,000,000 requests"),
    ({"rate": 0.0}, "a rate is above 0 per second"),
    ({"arrival": "gamma", "burstiness": 0.0}, "a burstiness is from"),
    ({"prompt": "some"}, "a length is 512"),
    ({"output": "0"}, "lengths go from 1"),
    ({"users": 0}, "users: 1 at least, not 0"),
    ({"prefixes": 0}, "prefixes: 1 at least, not 0"),
    ({"turns": 0}, "turns: 1 at least, not 0"),
    ({"tenants": -1}, "tenants: 1 at least, not -1"),
    ({"think": -1.0}, "think: 0 at least, not -1"),
    ({"think": float("nan")}, "think: 0 at least, not nan"),
    ({"tenant_skew": -1.0}, "tenant_skew: 0 at least, not -1"),
    ({"warm_requests": -1}, "warm_requests: 0 at least, not -1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_workload_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadLoad, match=re.escape(message)):
        loaded(**changes)


def test_a_run_into_which_no_request_falls_is_refused() -> None:
    # Of this seed, the first request comes after 1.6 s.
    with pytest.raises(BadLoad, match="no request falls into so short a time at so low a rate"):
        loaded(requests=None, seconds=1.0, rate=1.0, seed=13)
    assert len(loaded(requests=None, seconds=2.0, rate=1.0, seed=13).requests) == 1


def test_a_prompt_may_be_as_long_as_a_length_may() -> None:
    schedule = loaded(requests=1, prompt=str(lengths.LONGEST), hit_ratio=0.9)
    assert total(schedule.requests[0]) == lengths.LONGEST
