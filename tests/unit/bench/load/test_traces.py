"""Public traces as schedules. The cuts are small; their README tells where they are from."""

import collections
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.errors import BadLoad
from bench.load.lengths import LONGEST
from bench.load.schedule import Schedule
from bench.load.traces import MOONCAKE_BLOCK, Replay, Traced, read, replayed
from tests.unit.bench.load import brute_force

CUTS = Path(__file__).parents[3] / "data" / "traces"
MOONCAKE = CUTS / "mooncake_conversation.jsonl"
AZURE = CUTS / "azure_2023_conv.csv"

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"

repeatable = settings(deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def mooncake() -> list[Traced]:
    return read(MOONCAKE)


def ideal_by_hand() -> float:
    """Of the cut, from its lines alone: blocks seen before, as far as all before them were."""
    seen: set[int] = set()
    found = total = 0
    for line in map(json.loads, MOONCAKE.read_text().splitlines()):
        left, known = line["input_length"], True
        total += left
        for block in line["hash_ids"]:
            tokens = min(MOONCAKE_BLOCK, left)
            left -= tokens
            known = known and block in seen
            found += tokens * known
        seen |= set(line["hash_ids"])
    return found / total


def prompt_tokens(schedule: Schedule) -> int:
    return sum(planned.prompt_tokens for planned in schedule.requests)


def test_mooncakes_lines_become_requests(mooncake: list[Traced]) -> None:
    lines = [json.loads(line) for line in MOONCAKE.read_text().splitlines()]
    assert len(mooncake) == len(lines) == 59
    assert mooncake[0] == Traced(
        0.0, lines[0]["input_length"], lines[0]["output_length"], tuple(lines[0]["hash_ids"])
    )
    assert [traced.at for traced in mooncake] == [line["timestamp"] / 1000 for line in lines]
    schedule = replayed(mooncake, Replay())
    assert schedule.pacing == "open"
    for planned, line in zip(schedule.requests, lines, strict=True):
        assert planned.prompt_tokens == line["input_length"]
        assert planned.output_tokens == line["output_length"]
        assert len(planned.prompt) == len(line["hash_ids"])


def test_azures_lines_become_requests_without_anything_shared() -> None:
    trace = read(AZURE)
    assert len(trace) == 40
    assert trace[0] == Traced(0.0, 374, 44)
    # Seven digits of a second in the file, microseconds here.
    assert trace[1].at == pytest.approx(4.314579, abs=2e-6)
    assert (trace[1].prompt_tokens, trace[1].output_tokens) == (396, 109)
    schedule = replayed(trace, Replay())
    assert schedule.intended_hit_ratio() == 0.0
    assert brute_force.hit_ratio(schedule) < 0.01
    assert prompt_tokens(schedule) == sum(traced.prompt_tokens for traced in trace)


@pytest.mark.parametrize("stamp", ["2024-05-10 00:00:07", "2024-05-10 00:00:07.000000+00:00"])
def test_other_years_of_azure_write_their_times_otherwise(tmp_path: Path, stamp: str) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(f"{HEADER}2024-05-10 00:00:00.5,10,1\n{stamp},20,2\n")
    assert [traced.at for traced in read(path)] == [0.0, 6.5]


def test_times_are_sorted_and_count_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    line = '{"timestamp": %d, "input_length": %d, "output_length": 0}\n'
    path.write_text(line % (9000, 3) + "\n" + line % (7000, 0))
    assert read(path) == [Traced(0.0, 1, 1), Traced(2.0, 3, 1)]


def test_the_ideal_hit_ratio_is_that_of_the_blocks_and_of_the_texts(
    mooncake: list[Traced],
) -> None:
    whole = replayed(mooncake, Replay())
    assert whole.intended_hit_ratio() == pytest.approx(ideal_by_hand(), abs=1e-4)
    assert whole.intended_hit_ratio() == pytest.approx(0.648, abs=0.001)
    small = replayed(mooncake, Replay(scale=1 / 16))
    assert brute_force.hit_ratio(small) == pytest.approx(small.intended_hit_ratio(), abs=0.01)


@pytest.mark.parametrize("scale", [0.01, 0.25, 2.0])
def test_scaled_requests_share_what_they_shared(mooncake: list[Traced], scale: float) -> None:
    whole, scaled = replayed(mooncake, Replay()), replayed(mooncake, Replay(scale=scale))
    assert scaled.intended_hit_ratio() == pytest.approx(whole.intended_hit_ratio(), abs=0.01)
    assert prompt_tokens(scaled) == pytest.approx(prompt_tokens(whole) * scale, rel=0.03)
    for before, after in zip(whole.requests, scaled.requests, strict=True):
        assert [one.key for one in before.prompt] == [one.key for one in after.prompt]
        assert after.output_tokens == max(1, round(before.output_tokens * scale))
        assert after.at == before.at


def test_lengths_never_scale_to_nothing() -> None:
    tiny = replayed([Traced(0.0, 700, 3, (1, 2)), Traced(1.0, 9, 1)], Replay(scale=1e-6))
    assert [[one.tokens for one in planned.prompt] for planned in tiny.requests] == [[1, 1], [1]]
    assert {planned.output_tokens for planned in tiny.requests} == {1}


def test_tokens_that_no_block_tells_of_are_the_requests_own() -> None:
    trace = [Traced(0.0, 1500, 1, (1, 2)), Traced(1.0, 600, 1, (1, 2, 3, 4))]
    requests = replayed(trace, Replay()).requests
    assert [(one.key, one.tokens) for one in requests[0].prompt] == [
        ("block-1", 512),
        ("block-2", 512),
        ("own-0", 476),
    ]
    assert [one.tokens for one in requests[1].prompt] == [512, 88]
    assert requests[1].shared_tokens == 600


def test_speedup_divides_times_and_nothing_else(mooncake: list[Traced]) -> None:
    plain, fast = replayed(mooncake, Replay()), replayed(mooncake, Replay(speedup=4.0))
    assert [planned.at for planned in fast.requests] == [
        (planned.at or 0.0) / 4 for planned in plain.requests
    ]
    assert [planned.prompt for planned in fast.requests] == [
        planned.prompt for planned in plain.requests
    ]


def test_a_stretch_is_of_the_traces_own_time() -> None:
    trace = [Traced(float(at), 10 + at, 1) for at in range(10)]

    def chosen(**asked: Any) -> list[tuple[float | None, int]]:
        requests = replayed(trace, Replay(**asked)).requests
        assert [planned.number for planned in requests] == list(range(len(requests)))
        return [(planned.at, planned.prompt_tokens) for planned in requests]

    # From 3 s on; 3 s long, its end left out.
    assert chosen(first=3.0, seconds=3.0) == [(0.0, 13), (1.0, 14), (2.0, 15)]
    assert chosen(first=3.0, seconds=3.0, speedup=2.0) == [(0.0, 13), (0.5, 14), (1.0, 15)]
    assert chosen(first=2.5, requests=2) == [(0.5, 13), (1.5, 14)]
    assert chosen(first=8.0, seconds=9.0, requests=9) == [(0.0, 18), (1.0, 19)]
    assert len(chosen()) == 10


def test_a_conversation_stays_with_its_tenant(mooncake: list[Traced]) -> None:
    schedule = replayed(mooncake, Replay(tenants=5))
    assert schedule.tenants == tuple(f"tenant-{number}" for number in range(5))
    tenants = collections.defaultdict(set)
    for planned in schedule.requests:
        assert 0 <= planned.tenant < 5
        # The first block is every conversation's; the second one tells them apart.
        tenants[planned.prompt[1].key].add(planned.tenant)
    assert len(tenants) == 14
    assert all(len(found) == 1 for found in tenants.values())
    assert len(set(itertools.chain(*tenants.values()))) == 5
    # Only the block that all share has to be found anew by each tenant.
    alone = replayed(mooncake, Replay())
    lost = alone.intended_hit_ratio() - schedule.intended_hit_ratio()
    assert lost == pytest.approx(4 * MOONCAKE_BLOCK / prompt_tokens(alone), abs=1e-6)


def test_requests_without_blocks_are_dealt_to_all_tenants_alike() -> None:
    trace = [Traced(float(at), 10, 1) for at in range(3000)]
    counts = collections.Counter(
        planned.tenant for planned in replayed(trace, Replay(tenants=3)).requests
    )
    assert all(900 < counts[tenant] < 1100 for tenant in range(3))


@repeatable
@given(
    st.lists(
        st.builds(
            Traced,
            st.floats(0, 100),
            st.integers(1, 2000),
            st.integers(1, 100),
            st.lists(st.integers(0, 5), max_size=5).map(tuple),
        ),
        min_size=1,
        max_size=20,
    ),
    st.builds(
        Replay,
        speedup=st.floats(0.01, 100),
        scale=st.floats(1e-3, 10),
        tenants=st.integers(1, 4),
    ),
)
def test_any_trace_can_be_replayed_twice_alike(trace: list[Traced], replay: Replay) -> None:
    schedule = replayed(trace, replay)
    assert schedule.digest() == replayed(trace, replay).digest()
    assert len(schedule.requests) == len(trace)
    for planned in schedule.requests:
        assert 0 <= planned.shared_tokens <= planned.prompt_tokens


GOOD = '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n'


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", GOOD + "\n" + GOOD[:-5] + "\n", "a.jsonl, line 3: "),
        ("a.jsonl", GOOD + '{"timestamp": 0}\n', "a.jsonl, line 2: Object missing required field"),
        ("a.jsonl", GOOD.replace("5", '"5"', 1), "a.jsonl, line 1: Expected `int`"),
        ("a.jsonl", GOOD.replace("5", "-5", 1), "a.jsonl, line 1: Expected `int` >= 0"),
        ("a.jsonl", GOOD.replace("5", f"{LONGEST + 1}", 1), "a.jsonl, line 1: Expected `int` <="),
        ("a.jsonl", "\n\n", "a.jsonl holds no request"),
        ("a.csv", "", "a.csv holds no request"),
        ("a.csv", HEADER, "a.csv holds no request"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,4,4\nyesterday,4,4\n", "a.csv, line 3: "),
        ("a.csv", HEADER + "2023-11-16 18:15:46,4,four\n", "a.csv, line 2: "),
        ("a.csv", HEADER + "2023-11-16 18:15:46,4\n", "a.csv, line 2: "),
        ("a.csv", HEADER + "2023-11-16 18:15:46,-4,4\n", "a.csv, line 2: lengths go from 0 to"),
        ("a.csv", HEADER + f"2023-11-16 18:15:46,4,{LONGEST + 1}\n", "a.csv, line 2: lengths go"),
        ("a.csv", "time,in,out\n2023-11-16 18:15:46,4,4\n", "a.csv, line 2: "),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, name: str, content: str, where: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadLoad, match=re.escape(where)) as refused:
        read(tmp_path / name)
    assert str(refused.value).startswith(str(tmp_path / name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", HEADER.encode() + b"\xff\xfe,4,4\n"),
        ("a.csv", HEADER.encode() + b"x" * 200_000 + b",4,4\n"),
        ("a.jsonl", b"\xff\xfe\n"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadLoad, match=re.escape(str(tmp_path / name))):
        read(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadLoad, match=r"gone\.jsonl: No such file"):
        read(tmp_path / "gone.jsonl")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"speedup": 0.0}, "speedup and scale are above 0"),
        ({"speedup": float("inf")}, "speedup and scale are above 0"),
        ({"speedup": float("nan")}, "speedup and scale are above 0"),
        ({"scale": -1.0}, "speedup and scale are above 0"),
        ({"scale": float("inf")}, "scale is 100 at most"),
        ({"tenants": 0}, "tenants and requests: 1 at least"),
        ({"requests": 0}, "tenants and requests: 1 at least"),
        ({"requests": -1}, "tenants and requests: 1 at least"),
        ({"first": 100.0}, "no request of the trace lies in the stretch asked for"),
        ({"seconds": 0.0}, "no request of the trace lies in the stretch asked for"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(BadLoad, match=re.escape(message)):
        replayed([Traced(0.0, 5, 5), Traced(1.0, 5, 5)], Replay(**asked))
