"""A schedule is asked exactly as planned, and every outcome leaves one record."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence

import pytest

from bench.client import Timeline, failed
from bench.driving import frames
from bench.driving.driver import Driver, conversations
from bench.driving.fleet import shared_out
from bench.driving.target import Target
from bench.load.schedule import Planned, Schedule
from bench.load.workload import Workload, build
from bench.records import Record

TARGET = Target(base="http://nowhere", model="m", api="chat", extra={"ignore_eos": True})


class FakeServer:
    """Answers at once, with two tokens and a text of its own; keeps what it was asked."""

    def __init__(self, error: str = "", wait: asyncio.Event | None = None) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.at_once = self.most_at_once = 0
        self._error = error
        self._wait = wait

    def body(self, talk: Sequence[str], output_tokens: int) -> bytes:
        return TARGET.body(talk, output_tokens)

    async def send(
        self, planned: Planned, body: bytes, intended: float, keep_text: bool
    ) -> Timeline:
        self.asked.append((planned.number, body))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await (self._wait.wait() if self._wait else asyncio.sleep(0))
        finally:
            self.at_once -= 1
        now = time.monotonic()
        if self._error:
            return failed(intended, self._error)
        return Timeline(
            intended=intended,
            sent=now,
            tokens=(now, now + 0.001),
            finished=now + 0.001,
            status=200,
            error="",
            prompt_tokens=planned.prompt_tokens,
            completion_tokens=2,
            cached_tokens=7,
            usage={
                "prompt_tokens": planned.prompt_tokens,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 7},
            },
            headers={"x-kvferry-path": "disaggregated"},
            first_byte=now,
            text=f"answer {planned.number}",
            trailer={"stages": {"route": 1.5, "lunch": 9}, "cached": {"gpu": 7}},
        )


def driven(schedule: Schedule, salt: str = "s", server: FakeServer | None = None) -> FakeServer:
    return run(schedule, salt, server or FakeServer())[0]


def run(schedule: Schedule, salt: str, server: FakeServer) -> tuple[FakeServer, list[Record]]:
    records: list[Record] = []

    async def go() -> None:
        await Driver(server, schedule, salt, records.append).run(time.monotonic())

    asyncio.run(go())
    return server, records


def schedule(**changes: object) -> Schedule:
    chosen = {"rate": 10_000.0, "requests": 30, "hit_ratio": 0.5, "tenants": 3, **changes}
    return build(Workload(**chosen))  # type: ignore[arg-type]


def test_the_same_seed_and_salt_ask_the_same_bytes() -> None:
    first, again = driven(schedule()), driven(schedule())
    assert first.asked == again.asked
    assert len(first.asked) == 30


def test_another_salt_changes_every_prompt() -> None:
    one, other = driven(schedule()), driven(schedule(), "t")
    assert not {body for _, body in one.asked} & {body for _, body in other.asked}


def test_a_record_tells_what_was_planned_and_what_came() -> None:
    planned = schedule(requests=1).requests[0]
    (record,) = run(schedule(requests=1), "s", FakeServer())[1]
    assert record.ok
    assert record.planned_prompt_tokens == planned.prompt_tokens == record.prompt_tokens
    assert record.path == "disaggregated"
    assert record.stages == {"route": 1.5}
    assert record.tiers == {"gpu": 7}
    assert record.intended == pytest.approx(planned.at, abs=1e-6)


def test_turns_carry_the_talk_so_far() -> None:
    server = driven(schedule(pacing="users", users=1, turns=3, requests=3))
    said = [json.loads(body)["messages"] for _, body in server.asked]
    assert [len(talk) for talk in said] == [1, 3, 5]
    assert said[2][:3] == said[1]
    assert said[1][1] == {"role": "assistant", "content": "answer 0"}


def test_a_conversation_ends_with_its_first_failed_answer() -> None:
    server = driven(
        schedule(pacing="users", users=1, turns=3, requests=6), server=FakeServer("refused")
    )
    assert [number for number, _ in server.asked] == [0, 3]


def test_turns_behind_a_failure_leave_records() -> None:
    whole = schedule(pacing="users", users=1, turns=3, requests=6)
    _, records = run(whole, "s", FakeServer("refused"))
    assert sorted(record.number for record in records) == list(range(6))
    assert [record.error for record in records].count("not sent: an earlier turn failed") == 4


@pytest.mark.parametrize(
    ("usage", "trailer"),
    [
        ({"prompt_tokens": 2**65}, {}),
        ({"completion_tokens": -5}, {}),
        ({"prompt_tokens": True}, {}),
        ({}, {"cached": {"gpu": 1e300}}),
        ({}, {"stages": {"queue": 10**400}}),
        ({}, {"stages": {"queue": float("nan")}}),
        ({}, {"stages": [], "cached": "all"}),
    ],
)
def test_a_servers_strange_numbers_are_left_out(
    usage: dict[str, object], trailer: dict[str, object]
) -> None:
    class Odd(FakeServer):
        async def send(
            self, planned: Planned, body: bytes, intended: float, keep_text: bool
        ) -> Timeline:
            told = await super().send(planned, body, intended, keep_text)
            return dataclasses.replace(told, usage=usage, trailer=trailer)

    _, (record,) = run(schedule(requests=1), "s", Odd())
    frames.encode(frames.Progress((record,), 1, 0))
    assert (record.prompt_tokens, record.output_tokens) == (None, None)
    assert record.cached_tokens is None
    assert not record.stages
    assert not record.tiers


def test_users_never_have_more_than_their_number_in_flight() -> None:
    server = driven(schedule(pacing="users", users=4, requests=40))
    assert server.most_at_once == 4
    assert len(server.asked) == 40


def test_a_batch_is_wanted_at_once() -> None:
    records = run(schedule(pacing="batch", users=2, requests=10), "s", FakeServer())[1]
    assert {record.intended for record in records} == {0.0}


@pytest.mark.parametrize("pacing", ["users", "batch"])
def test_nothing_is_sent_before_the_begin(pacing: str) -> None:
    records: list[Record] = []

    async def go() -> None:
        load = schedule(pacing=pacing, users=2, requests=6)
        await Driver(FakeServer(), load, "s", records.append).run(time.monotonic() + 0.05)

    asyncio.run(go())
    assert min(record.lag for record in records) >= 0
    assert min(record.sent for record in records) >= 0


def test_open_loop_does_not_wait_for_answers() -> None:
    async def go() -> tuple[int, list[Record]]:
        never = asyncio.Event()
        records: list[Record] = []
        server = FakeServer(wait=never)
        driver = Driver(server, schedule(requests=20), "s", records.append)
        running = asyncio.create_task(driver.run(time.monotonic()))
        while driver.sent < 20:
            await asyncio.sleep(0)
        in_flight = driver.in_flight
        running.cancel()
        await asyncio.wait({running})
        return in_flight, records

    in_flight, records = asyncio.run(go())
    assert in_flight == 20
    assert len(records) == 20  # cut off, and said so
    assert all("stopped" in record.error for record in records)


def test_shares_keep_conversations_whole_and_lose_nothing() -> None:
    whole = schedule(pacing="users", users=5, turns=3, requests=31)
    shares = shared_out(whole, 3)
    assert sum(share.in_flight for share in shares) == 5
    numbers = sorted(planned.number for share in shares for planned in share.requests)
    assert numbers == list(range(31))
    places = [{planned.conversation for planned in share.requests} for share in shares]
    assert not places[0] & places[1] | places[0] & places[2] | places[1] & places[2]


@pytest.mark.parametrize(("users", "count"), [(1, 2), (3, 4), (3, 2), (5, 3)])
def test_every_share_has_requests_in_proportion_to_its_users(users: int, count: int) -> None:
    whole = schedule(pacing="users", users=users, requests=60)
    shares = shared_out(whole, count)
    assert sum(share.in_flight for share in shares) == users
    for share in shares:
        assert len(share.requests) == 60 * share.in_flight // users


def test_conversations_are_in_order_of_their_begin() -> None:
    talks = conversations(schedule(turns=2).requests)
    begins = [talk[0].at for talk in talks]
    assert begins == sorted(begins, key=lambda at: at or 0.0)
