"""What others have workers busy with: the last told of each, of live generations only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.engagements import LEASE_SECONDS, MAX_PROXIES, Engagements
from kvstore.messages import Engaged


def told(
    worker: str = "w", generation: str = "g", proxy: str = "p", prompts: int = 1, seconds: float = 2
) -> Engaged:
    return Engaged(worker, generation, proxy, prompts, seconds)


def test_the_last_that_a_proxy_told_counts_from_when_it_came() -> None:
    known = Engagements()
    known.apply(told(prompts=1), 10.0)
    known.apply(told(prompts=3, seconds=5.0), 11.0)
    known.apply(told(proxy="q"), 11.0)
    assert {(one.prompts, one.until) for _, one in known} == {(3, 16.0), (1, 13.0)}


def test_all_that_others_gave_is_counted_once() -> None:
    known = Engagements()
    known.apply(told(prompts=1, seconds=2.0), 10.0)
    known.apply(told(prompts=2, seconds=4.0), 11.0)  # one second is left of the first
    known.apply(told(prompts=1, seconds=2.5), 12.5)
    known.apply(told(prompts=0, seconds=0.0), 15.0)
    known.apply(told(proxy="q", prompts=1, seconds=0.5), 15.0)
    assert known.given == {("w", "g"): 2.0 + 3.0 + 0.5}
    known.apply(told(generation="h", seconds=1.0), 16.0)
    assert known.given == {("w", "h"): 1.0}
    known.forget(["w"])
    assert known.given == {}


def test_what_is_not_told_again_is_over() -> None:
    known = Engagements()
    known.apply(told(proxy="p"), 10.0)
    known.apply(told(proxy="q"), 13.0)
    known.expire(10.5 + LEASE_SECONDS)
    assert [one.until for _, one in known] == [15.0]


def test_who_is_late_takes_as_long_again() -> None:
    known = Engagements()
    known.apply(told(seconds=2.0), 10.0)
    ((_, one),) = known
    assert [one.work(now) for now in (10.0, 11.5, 12.0, 15.0)] == [2.0, 0.5, 0.0, 3.0]


def test_proxies_of_one_worker_are_bounded() -> None:
    known = Engagements()
    for number in range(MAX_PROXIES + 5):
        known.apply(told(proxy=f"p{number}"), 0.0)
    assert len(list(known)) == MAX_PROXIES


@given(
    st.lists(
        st.tuples(
            st.sampled_from("vw"), st.sampled_from("gh"), st.sampled_from("pq"), st.integers(0, 2)
        )
        | st.sampled_from("vw")
    )
)
def test_against_a_plain_model(steps: list[tuple[str, str, str, int] | str]) -> None:
    known, model = Engagements(), dict[tuple[str, str, str], int]()
    for step in steps:
        if isinstance(step, str):
            known.forget([step])
            model = {key: value for key, value in model.items() if key[0] != step}
            continue
        worker, generation, proxy, prompts = step
        known.apply(told(worker, generation, proxy, prompts), 0.0)
        for key in [key for key in model if key[0] == worker and key[1] != generation]:
            del model[key]
        model.pop((worker, generation, proxy), None)
        if prompts:
            model[worker, generation, proxy] = prompts
        assert sorted(one.prompts for _, one in known) == sorted(model.values())
        lives = {key[:2] for key in model}
        assert len(known) == len(lives)
        assert len({life[0] for life in lives}) == len(lives)
