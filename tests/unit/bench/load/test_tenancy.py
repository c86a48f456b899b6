"""A mix of tenants as it was recorded."""

import collections
import itertools
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from bench.load.errors import BadLoad
from bench.load.schedule import Schedule
from bench.load.tenancy import Client, mixed, read

CUT = Path(__file__).parents[3] / "data" / "traces" / "servegen"


def mix(clients: list[Client] | None = None, **changes: Any) -> Schedule:
    asked = {"rate": 50.0, "seconds": 60.0, "prompt": "10-20", "output": "4", "seed": 1, **changes}
    return mixed(read(CUT) if clients is None else clients, **asked)


def test_clients_are_read_busiest_first() -> None:
    clients = read(CUT)
    assert [client.name for client in clients] == [
        *("chunk-5", "chunk-38", "chunk-17", "chunk-33", "chunk-14", "chunk-39")
    ]
    busiest = clients[0]
    assert busiest.rate == pytest.approx((378.9166667 + 348.975 + 325.3283333) / 3)
    assert busiest.cv == pytest.approx(1.1223850711)


def test_a_rate_is_of_the_whole_record_so_rare_clients_stay_rare() -> None:
    # It asked in one row of three, 58.8 times a second; how bursty it was is told by that row.
    (rare,) = [client for client in read(CUT) if client.name == "chunk-33"]
    assert rare.rate == pytest.approx(58.7816667 / 3)
    assert rare.cv == pytest.approx(166.36, abs=0.01)


def test_clients_that_never_ask_are_no_tenants(tmp_path: Path) -> None:
    (tmp_path / "silent-trace.csv").write_text("0,0,0,,0,0\n600,0,0,,0,0\n")
    (tmp_path / "loud-trace.csv").write_text("0,2,1,Gamma,1,1\n600,0,,,0,0\n")
    assert read(tmp_path) == [Client("loud", 1.0, 1.0)]


def test_one_wild_stretch_does_not_make_a_client_bursty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0,1,1.0,,0,0\n600,1,1.2,,0,0\n1200,1,900,,0,0\n")
    assert read(tmp_path)[0].cv == pytest.approx(1.2)


def test_each_client_is_a_tenant_with_its_share() -> None:
    clients = [Client("a", 6.0, 1.0), Client("b", 3.0, 1.0), Client("c", 1.0, 1.0)]
    schedule = mix(clients, rate=100.0, seconds=100.0)
    assert schedule.tenants == ("a", "b", "c")
    assert schedule.pacing == "open"
    counts = collections.Counter(planned.tenant for planned in schedule.requests)
    assert [counts[tenant] / 10_000 for tenant in range(3)] == pytest.approx(
        [0.6, 0.3, 0.1], abs=0.02
    )
    times = [planned.at or 0.0 for planned in schedule.requests]
    assert times == sorted(times)
    assert times[0] >= 0
    assert 99 < times[-1] < 100
    assert [planned.number for planned in schedule.requests] == list(range(len(times)))
    assert schedule.intended_hit_ratio() == 0.0


def test_each_client_keeps_its_burstiness() -> None:
    clients = [Client("even", 1.0, 0.1), Client("bursty", 1.0, 4.0)]
    schedule = mix(clients, rate=200.0, seconds=100.0)
    for tenant, client in enumerate(clients):
        times = [planned.at or 0.0 for planned in schedule.requests if planned.tenant == tenant]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        variation = statistics.stdev(gaps) / statistics.fmean(gaps)
        assert variation == pytest.approx(client.cv, rel=0.15)


def test_bursty_clients_do_not_all_begin_with_a_burst() -> None:
    clients = [Client(f"{number}", 1.0, 5.0) for number in range(20)]
    counts = [
        sum(
            (planned.at or 0.0) < 1
            for planned in mix(clients, rate=40.0, seconds=2.0, seed=seed).requests
        )
        for seed in range(60)
    ]
    assert statistics.fmean(counts) == pytest.approx(40, rel=0.25)


@pytest.mark.parametrize("cv", [0.0, 1e-6, 1e6])
def test_even_extreme_clients_can_be_played(cv: float) -> None:
    schedule = mix([Client("odd", 5.0, cv), Client("plain", 5.0, 1.0)], seconds=20.0)
    assert {planned.tenant for planned in schedule.requests} >= {1}


def test_the_same_seed_gives_the_same_schedule_and_another_another() -> None:
    assert mix().digest() == mix().digest()
    assert mix().digest() != mix(seed=2).digest()


def test_a_client_keeps_its_times_whoever_else_is_there() -> None:
    one, other = Client("a", 3.0, 2.0), Client("b", 1.0, 1.0)
    alone = [planned.at for planned in mix([one], rate=3.0).requests]
    together = [
        planned.at for planned in mix([one, other], rate=4.0).requests if not planned.tenant
    ]
    assert alone == together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "a run has 1 to 1,000,000 requests, not 0"),
        ({"rate": -5.0}, "a run has 1 to 1,000,000 requests, not -300"),
        ({"rate": math.inf}, "a run has 1 to 1,000,000 requests, not inf"),
        ({"seconds": math.inf}, "a run has 1 to 1,000,000 requests, not inf"),
        ({"seconds": math.nan}, "a run has 1 to 1,000,000 requests, not nan"),
        ({"rate": 1e-9}, "no request falls into so short a time at so low a rate"),
        ({"prompt": "long"}, "a length is 512"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadLoad, match=re.escape(message)):
        mix(**changes)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("0,1,1\n600,often,1\n", "bad.csv, line 2: "),
        ("0,1,1\n600\n", "bad.csv, line 2: "),
        ("0,1,\n", "bad.csv, line 1: "),
        ("0,nan,1\n", "bad.csv, line 1: "),
        ("0,inf,1\n", "bad.csv, line 1: "),
        ("0,-1,1\n", "bad.csv, line 1: "),
        ("0,1,-1\n", "bad.csv, line 1: "),
        ("0," + "1" * 200_000 + ",1\n", "bad.csv is no client"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, content: str, where: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(BadLoad, match=re.escape(where)):
        read(tmp_path)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(BadLoad, match=r"bad\.csv is no client"):
        read(tmp_path)


def test_a_folder_without_clients_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(BadLoad, match="holds no client's CSV file with a rate above zero"):
            read(folder)
