"""Operators are told why a request goes where it goes; nobody else is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from deploy import explain
from kvstore.errors import ConfigError
from tests.support.proxy_fakes import PROMPT_TOKENS, TOKEN, Stage, chat, run, stage

pytestmark = pytest.mark.timeout(60)


async def explained(s: Stage, tenant: str = "alice", **fields: Any) -> dict[str, Any]:
    request = "chat", json.dumps(chat(**fields)).encode()
    return await asyncio.to_thread(explain.ask, s.admin_url, TOKEN, tenant, request)


def test_candidates_and_what_they_hold(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, prefill=2) as s:
            s.directory.holds(s.prefill[1], 4)
            s.directory.holds(s.d, 1)
            told = await explained(s)
            assert told["plan"] == "prefill"
            assert told["tokens"] == PROMPT_TOKENS
            assert told["expected"]["held"] == 64
            first, second = told["prefill"]
            assert (first["worker"], first["gpu"], first["held"]) == ("prefill-1", 64, 64)
            assert (second["worker"], second["gpu"]) == ("prefill-0", 0)
            assert first["costs"] < second["costs"]
            (decode,) = told["decode"]
            assert decode == {"worker": "decode-0", "gpu": 16, "dram": 0, "in_flight": 0}
            assert not s.p.generated
            assert not s.d.generated
            assert "prefill by prefill-1" in explain.text(told)
            assert (await explained(s, "bob"))["prefill"][0]["gpu"] == 0

    run(scenario)


def test_a_hint_says_where_a_cold_prompt_goes_and_nothing_more(tmp_path: Path) -> None:
    keys = [f"chat-{at}" for at in range(12)]

    async def meant(s: Stage, key: str | None, tenant: str = "alice") -> str:
        told = await explained(s, tenant, prompt_cache_key=key)
        return str(told["prefill"][0]["worker"])

    async def scenario() -> None:
        async with stage(tmp_path, prefill=2) as s:
            found = [await meant(s, key) for key in keys]
            assert set(found) == {"prefill-0", "prefill-1"}
            assert found == [await meant(s, key) for key in keys]
            assert found != [await meant(s, key, "bob") for key in keys]
            assert await meant(s, None) == await meant(s, "") == "prefill-0"
            second = keys[found.index("prefill-1")]
            headers = {"x-session-affinity": second, "x-kvferry-token": TOKEN}
            async with s.post(chat(), headers=headers) as reply:
                plan = json.loads(reply.headers["x-kvferry-plan"])
            assert plan["prefill"][0]["worker"] == "prefill-1"
            assert s.prefill[1].generated
            for key in keys:  # it is about to hold the prompt
                assert await meant(s, key) == "prefill-1"

    run(scenario)


def test_reasons_for_decode_alone_and_for_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.state = "draining"
            told = await explained(s)
            assert (told["plan"], told["reason"]) == ("decode-only", "no-prefill-worker")
            assert "(no-prefill-worker)" in explain.text(told)

    run(scenario)


def test_a_real_request_tells_too_where_an_operator_asks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            for token, told in ((TOKEN, True), ("guess", False)):
                async with s.post(chat(), headers={"x-kvferry-token": token}) as reply:
                    assert reply.status == 200
                    assert ("x-kvferry-plan" in reply.headers) == told
            async with s.post(chat(stream=True), headers={"x-kvferry-token": TOKEN}) as reply:
                assert json.loads(reply.headers["x-kvferry-plan"])["plan"] == "prefill"
                await reply.read()

    run(scenario)


def test_others_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            url = f"{s.admin_url}/kvferry/explain/alice/chat"
            for headers in ({}, {"authorization": "Bearer key-of-alice"}):
                async with s.session.post(url, data=b"{}", headers=headers) as reply:
                    assert reply.status == 401
            with pytest.raises(ConfigError, match="No tenant 'nobody'"):
                await explained(s, "nobody")

    run(scenario)


@pytest.mark.parametrize("content", ["", "[1]", "{}", "no json"])
def test_what_is_no_request_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "request.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"request\.json"):
        explain.read(file)


def test_without_a_proxy() -> None:
    with pytest.raises(ConfigError, match="no proxy answers"):
        explain.ask("http://127.0.0.1:1", TOKEN, "alice", ("chat", b"{}"))
