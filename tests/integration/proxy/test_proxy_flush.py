"""A flush ends what runs with an error that says so; operators' routes are operators' only."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kvstore.admission import FLUSHED
from kvstore.exchange import Event
from kvstore.gate import refuse
from kvstore.messages import Holding, Standing, Tenancy, Usage, Wiped
from kvstore.salts import OWNER_HEADER, Scope, owner, salt, tag
from proxy import faults
from tests.support.proxy_fakes import SALT_KEY, Stage, chat, run, stage, until

pytestmark = pytest.mark.timeout(60)

ALICE = tag(SALT_KEY, "alice")


async def flushed(s: Stage, tenant: str = "alice") -> dict[str, Any]:
    """Flushes while workers answer as they do."""

    def answer() -> None:
        standing = s.said.said[-1]
        for worker in ("prefill-0", "decode-0"):
            s.said.tenants.met(worker, "g")
            s.said.hear(Tenancy(worker, (standing,)))
            s.said.hear(Wiped(worker, "gpu", standing.tag, standing.epoch, 10, 0.1))
        s.said.hear(Wiped("prefill-0", "dram", standing.tag, standing.epoch, 100, 0.2))

    before = len(s.said.said)
    asking = asyncio.create_task(told(s, "POST", f"/admin/tenants/{tenant}/flush"))
    await until(lambda: len(s.said.said) > before)
    answer()
    status, body = await asking
    assert status == 200
    return body


async def told(s: Stage, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    async with s.operator(method, path, **options) as reply:
        return reply.status, await reply.json()


def test_what_runs_ends_and_others_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.hold = asyncio.Event()
            mine = asyncio.create_task(s.post(chat()).__aenter__())
            others = asyncio.create_task(s.post(chat(), key="bob").__aenter__())
            await until(lambda: len(s.d.generated) == 2)
            await flushed(s)
            reply = await mine
            body = await reply.json()
            assert (reply.status, body["error"]["code"]) == (409, "cache_flushed")
            s.d.hold.set()
            assert (await others).status == 200
            await s.counted('status="409"')

    run(scenario)


def test_a_stream_that_has_begun_ends_with_an_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.hold_after = 2
            async with s.post(chat(stream=True)) as reply:
                assert reply.status == 200
                await reply.content.readuntil(b"\n\n")
                await flushed(s)
                rest = (await reply.read()).decode()
            events = [json.loads(line[5:]) for line in rest.splitlines() if line[5:].strip()]
            assert events[-1]["error"]["code"] == "cache_flushed"
            assert "[DONE]" not in rest
            await asyncio.wait_for(s.d.aborted.wait(), 5)

    run(scenario)


def test_legs_claim_their_owner_and_the_salt_is_another_one_afterwards(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            for epoch in (0, 1):
                async with s.post(chat()) as reply:
                    assert reply.status == 200
                for leg in (s.p.generated[-1], s.d.generated[-1]):
                    assert leg.body["cache_salt"] == salt(SALT_KEY, Scope("alice", epoch))
                    whose = owner(leg.body["cache_salt"])
                    assert whose is not None
                    assert leg.headers[OWNER_HEADER] == whose.claim == f"{ALICE}-{epoch}"
                if epoch == 0:
                    await flushed(s)

    run(scenario)


def test_a_flush_tells_what_came_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            found = await flushed(s)
            assert (found["tenant"], found["epoch"]) == ("alice", 1)
            assert found["unconfirmed"] == found["not_overwritten_yet"] == []
            assert sum(one["bytes"] for one in found["overwritten"]) == 120
            assert (await told(s, "POST", "/admin/tenants/carol/flush"))[0] == 404

    run(scenario)


def test_workers_that_do_not_answer_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.admin.CONFIRM_SECONDS", 0.05)
    monkeypatch.setattr("proxy.admin.WIPE_SECONDS", 0.05)

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            status, found = await told(s, "POST", "/admin/tenants/alice/flush")
            assert status == 200
            assert found["unconfirmed"] == ["decode-0", "prefill-0"]
            late = ["decode-0/gpu", "prefill-0/dram", "prefill-0/gpu"]
            assert found["not_overwritten_yet"] == late

    run(scenario)


def test_tenants_and_what_is_held_of_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.said.tenants.met("prefill-0", "g")
            held = Holding(ALICE, 4096, 512), Holding("0" * 16, 7)
            s.said.hear(Usage("prefill-0", "dram", 1 << 20, 0, 1, held))
            _, found = await told(s, "GET", "/admin/tenants")
            alice, bob = found["tenants"]
            assert alice["memory"] == [
                {"worker": "prefill-0", "tier": "dram", "kept": 4096, "used": 512}
            ]
            assert (bob["name"], bob["memory"], alice["keys"]) == ("bob", [], 1)
            labels = 'tenant="alice",tier="dram",worker="prefill-0"'
            await s.counted(f"kvferry_tenant_kept_bytes{{{labels}}} 4096.0")
            await s.counted('kvferry_tenant_kept_bytes{tenant="unknown"')

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/tenants"),
        ("POST", "/admin/tenants/alice/flush"),
        ("POST", "/kvferry/explain/alice/chat"),
        ("GET", "/metrics"),
    ],
)
def test_operators_only_and_by_their_own_door(tmp_path: Path, method: str, path: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tries: tuple[dict[str, str], ...] = (
                {},
                {"authorization": "Bearer key-of-alice"},
                {"x-kvferry-token": "wrong"},
            )
            for headers in tries:
                async with s.session.request(method, s.admin_url + path, headers=headers) as reply:
                    assert reply.status == 401
            headers = {"authorization": "Bearer cluster-token"}
            async with s.session.request(method, s.url + path, headers=headers) as reply:
                assert reply.status == 404
            assert s.said.said[2:] == []

    run(scenario)


def test_nothing_is_flushed_before_a_worker_has_said_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.admin.WIPE_SECONDS", 0.05)

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            workers, s.directory.live = s.directory.live, []
            monkeypatch.setattr("proxy.admin.CONFIRM_SECONDS", 0.05)
            status, found = await told(s, "POST", "/admin/tenants/alice/flush")
            assert (status, found["error"]["code"]) == (503, "unavailable")
            assert s.said.said[2:] == []
            monkeypatch.setattr("proxy.admin.CONFIRM_SECONDS", 2.0)
            asking = asyncio.create_task(told(s, "POST", "/admin/tenants/alice/flush"))
            await asyncio.sleep(0.1)
            s.said.hear(Tenancy("prefill-0", (Standing(ALICE, 5),)))
            s.directory.live = workers
            s.said.hear()
            status, found = await asking
            assert (status, found["epoch"]) == (200, 6)

    run(scenario)


def test_a_leg_refused_as_flushed_costs_nobody_else_the_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.hold = asyncio.Event()
            error = {"message": FLUSHED.message, "code": FLUSHED.code}
            s.p.refusal = (FLUSHED.status, {"error": error})
            async with s.post(chat()) as reply:  # decode has not heard yet
                assert reply.status == 200
            assert s.d.abandoned
            queues = s.pipeline._turns._queues.values()
            assert [queue.scheduler._failures for queue in queues] == [{}]

    run(scenario)


def test_a_gate_refuses_in_the_form_that_proxies_read() -> None:
    sent: list[Event] = []

    async def send(event: Event) -> None:
        sent.append(event)

    asyncio.run(refuse(send, FLUSHED))
    error = faults.from_worker(sent[0]["status"], sent[1]["body"])
    assert (error.status, error.code) == (409, "cache_flushed")
