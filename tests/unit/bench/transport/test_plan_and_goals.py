"""The plan measures what the goals ask, in an order of its own for every round and seed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bench.transport.case import Case
from bench.transport.contender import SCHEMES, Kvferry, Memcpy, Mooncake, Nixl, PingPong, RawSocket
from bench.transport.goals import Figure, goals
from bench.transport.plan import PEER_LARGEST, Plan

WHOLE = Plan()


def test_a_whole_run_measures_every_figure_that_a_goal_divides() -> None:
    figures = set(WHOLE.figures())
    for goal in goals(WHOLE.schemes, WHOLE.sizes):
        for candidate in goal.candidates:
            assert set(candidate.figures) <= figures, candidate.label


@pytest.mark.parametrize("scheme", SCHEMES)
def test_so_does_a_run_of_one_transport(scheme: str) -> None:
    plan = Plan(schemes=tuple(one for one in SCHEMES if one == scheme))
    wanted = {
        figure
        for goal in goals(plan.schemes, plan.sizes)
        for candidate in goal.candidates
        for figure in candidate.figures
    }
    assert wanted <= set(plan.figures())
    ours = {f.contender for f in plan.figures() if isinstance(f.contender, Kvferry)}
    assert {one.scheme for one in ours} == {scheme}


def test_no_figure_is_measured_twice_or_wants_more_than_is_held() -> None:
    figures = WHOLE.figures()
    assert len(set(figures)) == len(figures)
    assert max(figure.case.blocks for figure in figures) == WHOLE.held
    peers = [one for one in figures if isinstance(one.contender, Mooncake | Nixl)]
    assert max(figure.case.blocks for figure in peers) == PEER_LARGEST


def test_sizes_go_from_one_block_to_the_largest() -> None:
    assert WHOLE.sizes == [1, 4, 16, 64, 256, 1024, 4096, 16384]
    assert Plan(largest=3 << 16).sizes == [1]


def test_digests_and_curve_are_measured_on_and_off() -> None:
    ours = {f.contender for f in WHOLE.figures() if isinstance(f.contender, Kvferry)}
    tcp = {Kvferry("zmq+tcp", d, c) for d in (False, True) for c in (False, True)}
    assert {one for one in ours if one.scheme == "zmq+tcp"} == tcp
    assert {one for one in ours if one.scheme == "shm"} == {Kvferry("shm"), Kvferry("shm", True)}


def test_up_to_a_hundred_transfers_share_the_same_blocks() -> None:
    shared = [f.case for f in WHOLE.figures() if f.case.transfers > 1]
    assert {case.transfers for case in shared} == {10, 100}
    assert len({case.blocks for case in shared}) == 1
    assert all(case.blocks % case.transfers == 0 for case in shared)


def test_a_seed_decides_the_order_and_rounds_differ() -> None:
    figures = WHOLE.figures()
    first = WHOLE.shuffled(figures, 0)
    assert first == Plan().shuffled(list(figures), 0)
    assert set(first) == set(figures)
    assert first != WHOLE.shuffled(figures, 1)
    assert first != Plan(seed=1).shuffled(figures, 0)


def test_neither_sizes_nor_contenders_of_a_size_keep_their_order() -> None:
    shuffled = WHOLE.shuffled(WHOLE.figures(), 0)
    sizes = list(dict.fromkeys(figure.case.size for figure in shuffled))
    assert sizes != sorted(sizes)
    blocks = [figure for figure in shuffled if figure.case.blocks == 1]
    assert blocks != [figure for figure in WHOLE.figures() if figure.case.blocks == 1]


def test_what_is_alike_in_size_is_measured_close_together() -> None:
    sizes = [figure.case.size for figure in WHOLE.shuffled(WHOLE.figures(), 0)]
    changes = sum(before != after for before, after in pairwise(sizes))
    assert changes == len(set(sizes)) - 1


def test_the_bounds_are_those_that_were_set() -> None:
    assert {goal.metric: (goal.kind, goal.limit) for goal in goals(SCHEMES, WHOLE.sizes)} == {
        "shm_contiguous_vs_memcpy": ("at least", 0.8),
        "shm_paged_vs_gather": ("at least", 0.8),
        "shm_paged_vs_mooncake": ("at least", 2.0),
        "shm_digest_on_vs_off": ("at least", 0.6),
        "tcp_vs_raw": ("at least", 0.75),
        "tcp_digest_on_vs_off": ("at least", 0.85),
        "tcp_curve_on_vs_off": ("told", None),
        "ipc_vs_raw": ("at least", 0.65),
        "one_block_us": ("at most", 500.0),
        "one_block_vs_pingpong": ("at most", 3.0),
        "per_byte_1m_vs_1g": ("at most", 1.5),
        "hundred_vs_one": ("at least", 0.9),
    }


def test_contiguous_memory_is_compared_from_16_mib_on() -> None:
    (goal,) = [g for g in goals(("shm",), WHOLE.sizes) if g.metric == "shm_contiguous_vs_memcpy"]
    assert [one.over.case.size >> 20 for one in goal.candidates] == [16, 64, 256, 1024]
    assert all(one.under == Figure(Memcpy(), one.over.case) for one in goal.candidates)


def test_a_block_over_tcp_is_beside_a_round_trip_over_tcp() -> None:
    (goal,) = [g for g in goals(SCHEMES, WHOLE.sizes) if g.metric == "one_block_vs_pingpong"]
    beside = {one.over.contender: one.under for one in goal.candidates}
    assert beside[Kvferry("zmq+tcp", digests=True)] == Figure(PingPong("tcp"), Case(1))
    assert beside[Kvferry("shm", digests=True)] == Figure(PingPong("ipc"), Case(1))


def test_raw_sockets_carry_as_much_from_contiguous_memory() -> None:
    (goal,) = [g for g in goals(SCHEMES, WHOLE.sizes) if g.metric == "tcp_vs_raw"]
    (one,) = goal.candidates
    assert one.over == Figure(Kvferry("zmq+tcp"), Case(1024, "random"))
    assert one.under == Figure(RawSocket("tcp"), Case(1024))
    assert one.label == "zmq+tcp, 64 MiB random / raw tcp, 64 MiB contiguous"
