"""Adapters as models of their own: who serves them, what legs ask for, and what none may find."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from deploy import explain
from kvstore.messages import ServedAdapter
from kvstore.salts import Scope, salt
from tests.support.proxy_fakes import (
    MODEL,
    SALT_KEY,
    TOKEN,
    Stage,
    Worker,
    chat,
    completion,
    run,
    stage,
)

pytestmark = pytest.mark.timeout(60)

OLD, NEW = (ServedAdapter("poet", revision * 16, "/adapters/poet") for revision in "ab")
CLERK = ServedAdapter("clerk", "c" * 16, "/adapters/clerk")


def serve(workers: list[Worker], *adapters: ServedAdapter) -> None:
    for worker in workers:
        worker.adapters = adapters


async def asked(s: Stage, model: str, key: str = "alice", **fields: Any) -> dict[str, Any]:
    async with s.post(chat(**fields) | {"model": model}, key=key) as reply:
        assert reply.status == 200, await reply.text()
        return {**await reply.json(), "path": reply.headers["x-kvferry-path"]}


async def explained(s: Stage, model: str) -> dict[str, Any]:
    request = "chat", json.dumps(chat() | {"model": model}).encode()
    return await asyncio.to_thread(explain.ask, s.admin_url, TOKEN, "alice", request)


def test_both_legs_ask_for_name_and_revision(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            serve([s.p, s.d], OLD, CLERK)
            for model in ("poet", OLD.model):
                told = await asked(s, model)
                assert (told["model"], told["path"]) == (OLD.model, "disaggregated")
            await asked(s, "clerk")
            await asked(s, MODEL)
            models = [OLD.model, OLD.model, CLERK.model, MODEL]
            assert [leg.body["model"] for leg in s.p.generated] == models
            assert [leg.body["model"] for leg in s.d.generated] == models
            rendered = s.d.of("/v1/chat/completions/render")
            assert [one.body["model"] for one in rendered] == models

    run(scenario)


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_each_has_a_salt_of_its_own_for_each_tenant(
    tmp_path: Path, route: str, stream: bool
) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            serve([s.p, s.d], OLD, CLERK)
            for key in ("alice", "bob"):
                for model in (MODEL, "poet", "clerk"):
                    body = (chat if route == "chat" else completion)(stream=stream)
                    async with s.post(body | {"model": model}, route, key) as reply:
                        assert reply.status == 200
                        await reply.read()
            salts = [leg.body["cache_salt"] for leg in s.d.generated]
            assert salts == [leg.body["cache_salt"] for leg in s.p.generated]
            assert len(set(salts)) == 6
            scope = Scope("bob", 0, adapter="poet", adapter_revision=OLD.revision)
            assert salts[4] == salt(SALT_KEY, scope)
            serve([s.p, s.d], NEW)
            await asked(s, "poet")
            assert s.d.generated[-1].body["cache_salt"] not in salts

    run(scenario)


def test_they_are_listed_beside_their_base(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, decode=2) as s:
            serve([s.p, s.decode[0]], OLD, CLERK)
            serve([s.decode[1]], NEW, CLERK)
            headers = {"authorization": "Bearer key-of-bob"}
            async with s.session.get(s.url + "/v1/models", headers=headers) as reply:
                cards = (await reply.json())["data"]
            assert [(one["id"], one["root"], one["parent"]) for one in cards] == [
                (MODEL, MODEL, None),
                ("clerk", MODEL, MODEL),
                ("poet", MODEL, MODEL),
            ]
            assert {(one["owned_by"], one["max_model_len"]) for one in cards} == {("kvferry", 8192)}
            assert "/adapters" not in json.dumps(cards)

    run(scenario)


@pytest.mark.parametrize("model", ["nobody", NEW.model, "poet@", "/adapters/poet", "POET", ""])
def test_what_nobody_serves_is_unknown(tmp_path: Path, model: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            serve([s.p, s.d], OLD)
            async with s.post(chat() | {"model": model}) as reply:
                assert reply.status == 404
                error = (await reply.json())["error"]
            assert error["code"] == "model_not_found"
            assert f"{MODEL}, poet" in error["message"]
            assert not s.d.seen

    run(scenario)


def test_a_revision_is_served_by_its_own_workers_only(tmp_path: Path) -> None:
    """While an adapter is exchanged on one worker after the other."""

    async def scenario() -> None:
        async with stage(tmp_path, prefill=2, decode=3) as s:
            serve([s.prefill[1], *s.decode[:2]], OLD)
            serve([s.prefill[0], s.decode[2]], NEW)
            for _ in range(4):
                assert (await asked(s, "poet"))["model"] == OLD.model
                assert (await asked(s, NEW.model))["model"] == NEW.model
            assert {leg.body["model"] for leg in s.prefill[1].generated} == {OLD.model}
            assert {leg.body["model"] for leg in s.prefill[0].generated} == {NEW.model}
            assert {leg.body["model"] for leg in s.decode[2].generated} == {NEW.model}
            assert len(s.decode[2].generated) == 4
            serve([s.decode[1]], NEW)
            assert (await asked(s, "poet"))["model"] == NEW.model
            # Nobody ships what the only prefill worker of another revision would compute.
            serve([s.prefill[0]], OLD)
            told = await asked(s, "poet")
            assert (told["model"], told["path"]) == (NEW.model, "decode-only")
            assert (await explained(s, "poet"))["reason"] == "no-prefill-worker"
            assert (await asked(s, MODEL))["path"] == "disaggregated"

    run(scenario)


def test_a_lost_worker_is_replaced_by_one_with_the_same_weights(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, decode=3) as s:
            serve([s.p, s.decode[0], s.decode[2]], OLD)
            serve([s.decode[1]], NEW)
            s.decode[0].drop_before = True
            assert (await asked(s, "poet"))["model"] == OLD.model
            assert len(s.decode[2].generated) == 1
            assert not s.decode[1].generated

    run(scenario)


def test_steering_goes_by_what_is_held_under_that_adapter(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, prefill=2) as s:
            serve([*s.prefill, s.d], OLD, CLERK)
            s.directory.holds(s.prefill[1], 4, adapter=OLD)
            s.directory.holds(s.prefill[0], 2)
            for model, held in (
                ("poet", [("prefill-1", 64), ("prefill-0", 0)]),
                (MODEL, [("prefill-0", 32), ("prefill-1", 0)]),
                ("clerk", [("prefill-0", 0), ("prefill-1", 0)]),
            ):
                told = await explained(s, model)
                assert [(one["worker"], one["gpu"]) for one in told["prefill"]] == held
            assert (await explained(s, "poet"))["model"] == OLD.model
            await asked(s, "poet")
            assert len(s.prefill[1].generated) == 1

    run(scenario)
