"""Sub-scopes share nothing, and of a request of which nothing is to be kept nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvstore.salts import Scope, owner, salt, tag
from tests.integration.proxy.test_proxy_rendering import LONG, learnt
from tests.support.proxy_fakes import SALT_KEY, Stage, chat, completion, run, stage

pytestmark = pytest.mark.timeout(60)

HEADER = "x-prompt-cache-isolation-key"
NO_STORE: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"no_store": True}, {}),
    ({}, {"cache-control": "max-age=0, No-Store"}),
    ({"prompt_cache_isolation_key": "mine", "no_store": True}, {}),
]


async def salts_of(s: Stage, headers: dict[str, str], **fields: Any) -> str:
    """The salt that both legs of a request carry."""
    before = len(s.d.generated), len(s.p.generated)
    async with s.post(chat(**fields), headers=headers) as reply:
        assert reply.status == 200, await reply.read()
        await reply.read()
    legs = [*s.d.generated[before[0] :], *s.p.generated[before[1] :]]
    assert len(legs) == 2
    assert len({leg.body["cache_salt"] for leg in legs}) == 1
    carried: str = legs[0].body["cache_salt"]
    return carried


def test_a_sub_scope_narrows_the_salt(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            assert await salts_of(s, {}) == salt(SALT_KEY, Scope("alice", 0))
            mine = salt(SALT_KEY, Scope("alice", 0, "mine"))
            assert await salts_of(s, {HEADER: "mine"}) == mine
            assert await salts_of(s, {}, prompt_cache_isolation_key="mine") == mine
            both = await salts_of(s, {HEADER: "x"}, prompt_cache_isolation_key="mine")
            assert both == mine
            twice = [(HEADER, "mine"), (HEADER, "other")]
            async with s.session.post(
                f"{s.url}/v1/chat/completions",
                json=chat(),
                headers=[("authorization", "Bearer key-of-alice"), *twice],
            ) as reply:
                assert reply.status == 200
            assert s.d.generated[-1].body["cache_salt"] == salt(
                SALT_KEY, Scope("alice", 0, "mine, other")
            )

    run(scenario)


@pytest.mark.parametrize(("fields", "headers"), NO_STORE)
def test_each_request_of_which_nothing_is_kept_has_a_salt_of_its_own(
    tmp_path: Path, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            used = {await salts_of(s, headers, **fields) for _ in range(3)}
            assert len(used) == 3
            for one in used:
                whose = owner(one)
                assert whose is not None
                assert (whose.tag, whose.epoch, whose.kept) == (tag(SALT_KEY, "alice"), 0, False)
            assert await salts_of(s, {}) == salt(SALT_KEY, Scope("alice", 0))

    run(scenario)


@pytest.mark.parametrize(("fields", "headers"), NO_STORE)
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_the_proxy_keeps_nothing_of_it(
    tmp_path: Path, route: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            if route == "chat":
                body = chat(messages=[{"role": "user", "content": LONG * 4}], **fields)
            else:
                body = completion(prompt=LONG * 4, **fields)
            planner, remembered = s.pipeline._planner, s.pipeline._renderer._remembered
            for _ in range(2):
                async with s.post(body, route, headers=headers) as reply:
                    assert reply.headers["x-kvferry-path"] == "disaggregated"
                    await reply.read()
                assert remembered.size == 0
                assert not len(planner._chains)
                for queue in s.pipeline._turns._queues.values():
                    assert not queue.scheduler._promised._alike
            await s.counted('kvferry_render_characters_total{found="yes"} 0.0')
            # The same is remembered of one that may be kept: this looks where it would be.
            body.pop("no_store", None)
            async with s.post(body, route) as reply:
                await reply.read()
            assert remembered.size
            assert len(planner._chains)
            assert any(q.scheduler._promised._alike for q in s.pipeline._turns._queues.values())

    run(scenario)


def test_what_is_known_to_be_held_is_not_sought_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.directory.holds(s.d, 6)
            async with s.post(chat()) as reply:
                assert reply.headers["x-kvferry-path"] == "decode-only"
            async with s.post(chat(no_store=True)) as reply:
                assert reply.headers["x-kvferry-path"] == "disaggregated"
            async with s.post(chat(prompt_cache_isolation_key="mine")) as reply:
                assert reply.headers["x-kvferry-path"] == "disaggregated"

    run(scenario)


def test_texts_are_not_found_across_sub_scopes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            for _ in range(2):
                for scope in ("a", "b"):
                    body = completion(prompt=LONG, prompt_cache_isolation_key=scope)
                    async with s.post(body, "completions") as reply:
                        await reply.read()
                if not _:
                    await s.counted('kvferry_render_characters_total{found="yes"} 0.0')
            remembered = s.pipeline._renderer._remembered
            assert len(remembered._tenants) == 1
            assert len({key[0] for book in remembered._tenants.values() for key in book}) == 2

    run(scenario)


def test_a_flush_takes_what_the_proxy_remembers_of_that_tenant(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            body = completion(prompt=LONG * 4)
            for key in ("alice", "bob"):
                async with s.post(body, "completions", key) as reply:
                    await reply.read()
            chains, remembered = s.pipeline._planner._chains, s.pipeline._renderer._remembered
            before = len(chains), remembered.size
            s.tenants.flush("alice")
            assert (len(chains), remembered.size) == (before[0] // 2, before[1] // 2) > (0, 0)
            assert {key[0].partition("-")[0] for key in chains._runs} == {tag(SALT_KEY, "bob")}
            assert set(remembered._tenants) == {tag(SALT_KEY, "bob")}

    run(scenario)
