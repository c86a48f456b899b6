"""Which path a request takes, what each leg gets, and what the client is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from kvstore.salts import Scope, salt
from tests.support.proxy_fakes import (
    BLOCK,
    MODEL,
    PROMPT_TOKENS,
    SALT_KEY,
    TEXTS,
    Seen,
    Stage,
    chat,
    completion,
    events,
    outcome,
    run,
    stage,
    until,
)

pytestmark = pytest.mark.timeout(60)
FULL = PROMPT_TOKENS // BLOCK


def transfer_of(leg: Seen) -> str:
    return leg.headers["x-kvferry-transfer"]


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_disaggregated(tmp_path: Path, route: str, stream: bool) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.cached = 64
            make = chat if route == "chat" else completion
            async with s.post(make(stream=stream, temperature=0.5, tools=[]), route) as reply:
                raw = await reply.read()
                assert reply.status == 200, raw
                assert reply.headers["x-kvferry-path"] == "disaggregated"
                request_id = reply.headers["x-request-id"]
            prefill, decode = s.p.generated[0], s.d.generated[0]
            assert abs(prefill.at - decode.at) < 0.5
            assert prefill.path == "/v1/completions"
            assert prefill.body["prompt"] == s.d.tokens
            assert prefill.body["max_tokens"] == 1
            assert prefill.body["stream"] is False
            assert set(prefill.body["kv_transfer_params"]) == {"kvferry"}
            ticket = decode.body["kv_transfer_params"]["kvferry"]
            assert ticket["transfer"] == prefill.body["kv_transfer_params"]["kvferry"]["transfer"]
            assert ticket["ship"] == s.p.announce().ship
            assert ticket["sender_generation"] == s.p.announce().generation
            assert decode.headers["x-kvferry-transfer"] == ticket["transfer"]
            assert decode.headers["x-request-id"] == prefill.headers["x-request-id"] == request_id
            assert decode.body["temperature"] == 0.5
            expected = salt(SALT_KEY, Scope("alice", 0))
            assert decode.body["cache_salt"] == prefill.body["cache_salt"] == expected
            if route == "chat":
                assert decode.body["kv_transfer_params"]["prompt_token_ids"] == s.d.tokens
                assert decode.body["messages"] == chat()["messages"]
            else:
                assert decode.body["prompt"] == s.d.tokens
            if stream:
                assert decode.body["stream_options"] == {"include_usage": True}
                got = events(raw)
                assert got[-1] == "[DONE]"
                assert len(got) == len(TEXTS) + 1  # the usage chunk was not asked for
            else:
                assert b"kv_transfer_params" not in raw
                assert b'"cached_tokens":64' in raw

    run(scenario)


def test_streaming_usage_is_the_prefill_legs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.cached = 48
            body = chat(stream=True, stream_options={"include_usage": True})
            async with s.post(body) as reply:
                got = events(await reply.read())
            assert got[-2]["usage"] == {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": len(TEXTS),
                "total_tokens": PROMPT_TOKENS + len(TEXTS),
                "prompt_tokens_details": {"cached_tokens": 48},
            }
            assert got[-2]["choices"] == []
            text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in got[:-2])
            assert text == "".join(TEXTS)

    run(scenario)


def test_a_stream_waits_for_the_prefill_legs_figures(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.cached, s.p.hold = 32, asyncio.Event()
            body = chat(stream=True, stream_options={"include_usage": True})
            async with s.post(body) as reply:
                first = await reply.content.readuntil(b"\n\n")
                assert b"Paris" in first
                s.p.hold.set()
                got = events(first + await reply.read())
            assert got[-2]["usage"]["prompt_tokens_details"]["cached_tokens"] == 32

    run(scenario)


PIXEL = "data:image/png;base64,iVBORw0KGgo="
ALONE = {
    "n": (chat(n=2), "chat"),
    "prompt-logprobs": (chat(prompt_logprobs=1), "chat"),
    "echo": (completion(echo=True), "completions"),
    "chat-echo": (chat(echo=True), "chat"),
    "multi-prompt": (completion(prompt=["a", "b"]), "completions"),
    "multi-prompt-tokens": (completion(prompt=[[1], [2]]), "completions"),
    "beam-search": (chat(use_beam_search=True), "chat"),
    "non-text": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": PIXEL}]}]),
        "chat",
    ),
}


@pytest.mark.parametrize("case", ALONE)
def test_served_by_decode_alone(tmp_path: Path, case: str) -> None:
    body, route = ALONE[case]

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.outcome, s.d.cached = None, 17
            async with s.post(body, route) as reply:
                raw = await reply.read()
                assert reply.status == 200, raw
                assert reply.headers["x-kvferry-path"] == "decode-only"
                assert b'"cached_tokens":17' in raw
            assert not s.p.seen
            (leg,) = s.d.seen  # not even rendered
            handed = leg.body.pop("kv_transfer_params", None)
            if case == "beam-search":  # vLLM would drop it
                assert handed is None
            else:
                assert handed == {"kvferry": {"type": "local", "transfer": transfer_of(leg)}}
            assert leg.body["cache_salt"] == salt(SALT_KEY, Scope("alice", 0))
            sent = {name: value for name, value in leg.body.items() if name != "cache_salt"}
            if case == "non-text":
                assert sent["messages"][0]["content"][0].pop("uuid")
            assert sent == body
            reason = {"chat-echo": "echo", "multi-prompt-tokens": "multi-prompt"}
            await s.counted(f'reason="{reason.get(case, case)}"')

    run(scenario)


def test_one_prompt_in_a_list_is_disaggregated(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s, s.post(completion(prompt=["a"]), "completions") as reply:
            assert reply.headers["x-kvferry-path"] == "disaggregated"

    run(scenario)


@pytest.mark.parametrize(
    ("reason", "prepare"),
    [
        ("short", lambda s: setattr(s.d, "tokens", [1] * (BLOCK - 1))),
        ("no-prefill-worker", lambda s: setattr(s.p, "state", "draining")),
        ("no-prefill-worker", lambda s: s.directory.live.remove(s.p)),
        ("layout-mismatch", lambda s: setattr(s.p, "fingerprint", "0" * 64)),
        ("decode-holds", lambda s: s.directory.holds(s.d, FULL - 1)),
    ],
)
def test_planned_for_decode_alone(
    tmp_path: Path, reason: str, prepare: Callable[[Stage], object]
) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            prepare(s)
            s.d.outcome, s.d.cached = None, 5
            async with s.post(chat()) as reply:
                assert reply.headers["x-kvferry-path"] == "decode-only"
                assert b'"cached_tokens":5' in await reply.read()
            leg = s.d.generated[0]
            assert leg.body["kv_transfer_params"] == {
                "prompt_token_ids": s.d.tokens,
                "kvferry": {"type": "local", "transfer": transfer_of(leg)},
            }
            assert not s.p.seen
            await s.counted(f'reason="{reason}"')

    run(scenario)


@pytest.mark.parametrize("token", [1 << 32, -1])
def test_numbers_that_are_no_tokens_are_left_to_vllm(tmp_path: Path, token: int) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.tokens = [1] * 99 + [token]
            prompt = list(s.d.tokens)
            async with s.post(completion(prompt=prompt), "completions") as reply:
                assert reply.headers["x-kvferry-path"] == "decode-only"
            assert s.d.generated[0].body["prompt"] == prompt
            await s.counted('reason="no-tokens"')

    run(scenario)


def test_prefill_refuses_and_decode_recomputes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.refusal = (500, {"error": {"message": "no"}})
            s.d.hold, s.d.cached = asyncio.Event(), 0
            async with s.post(chat()) as reply:
                raw = await reply.read()
                assert reply.status == 200
                assert reply.headers["x-kvferry-path"] == "recomputed"
                assert b'"cached_tokens":0' in raw
            ticket = s.d.generated[0].body["kv_transfer_params"]["kvferry"]
            assert s.d.abandoned[0] == ticket["transfer"]
            await s.counted('reason="abandoned"')
            await s.counted('kvferry_leg_failures_total{reason="http-500",role="prefill"} 1.0')

    run(scenario)


def test_prefill_unreachable_counts_what_decode_had(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.http = f"unix:{tmp_path}/nobody"
            s.d.hold = asyncio.Event()
            original = s.d._abandon

            def abandon(transfer: str) -> web.Response:
                reply = original(transfer)
                s.d.outcome = outcome(shipped=False, local=32, reason="abandoned")
                return reply

            s.d._abandon = abandon  # type: ignore[method-assign]
            async with s.post(chat()) as reply:
                assert reply.headers["x-kvferry-path"] == "recomputed"
                assert b'"cached_tokens":32' in await reply.read()

    run(scenario)


def test_prefill_dies_mid_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.drop_before = True
            s.d.hold = asyncio.Event()
            async with s.post(chat(stream=True)) as reply:
                assert reply.headers["x-kvferry-path"] == "recomputed"
                assert events(await reply.read())[-1] == "[DONE]"
            assert s.d.abandoned

    run(scenario)


def test_a_failed_transfer_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.cached = 80
            s.d.outcome = outcome(shipped=False, local=48, reason="digest-mismatch")
            async with s.post(chat()) as reply:
                assert reply.headers["x-kvferry-path"] == "recomputed"
                assert b'"cached_tokens":48' in await reply.read()
            await s.counted('reason="digest-mismatch"')

    run(scenario)


def test_no_outcome_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.outcome, s.d.cached = None, 0
            async with s.post(chat()) as reply:
                assert reply.headers["x-kvferry-path"] == "recomputed"
            await s.counted('reason="no-outcome"')

    run(scenario)


def test_decode_unreachable_moves_with_its_ticket(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, decode=2) as s:
            # It answers the rendering and dies before the leg.
            s.d.tokens = list(range(PROMPT_TOKENS))
            gone = s.d.announce()
            s.directory.holds(s.d, 1)
            s.d.http = f"unix:{tmp_path}/nobody"
            assert gone.worker == "decode-0"
            s.decode[1].tokens = s.d.tokens
            async with s.post(chat()) as reply:
                assert reply.status == 200
                assert reply.headers["x-kvferry-path"] == "disaggregated"
            assert "kvferry" in s.decode[1].generated[0].body["kv_transfer_params"]

    run(scenario)


def test_decode_lost_before_its_first_token_moves_without(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, decode=2) as s:
            s.d.drop_before = True
            s.decode[1].outcome = None
            async with s.post(chat()) as reply:
                assert reply.status == 200
                assert reply.headers["x-kvferry-path"] == "recomputed"
            leg = s.decode[1].generated[0]
            assert leg.body["kv_transfer_params"]["kvferry"] == {
                "type": "local",
                "transfer": transfer_of(leg),
            }
            assert transfer_of(leg) != transfer_of(s.d.generated[0])
            await s.counted('reason="decode-lost"')

    run(scenario)


def test_the_longest_prefix_wins_then_the_least_loaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, prefill=2) as s:
            s.directory.holds(s.prefill[1], 3, "dram")
            async with s.post(chat()) as reply:
                await reply.read()
            assert s.prefill[1].generated
            assert not s.prefill[0].seen

    run(scenario)


def test_tenants_have_different_salts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            for key in ("alice", "bob"):
                async with s.post(chat(), key=key) as reply:
                    await reply.read()
            salts = [leg.body["cache_salt"] for leg in s.d.generated]
            assert salts == [salt(SALT_KEY, Scope(name, 0)) for name in ("alice", "bob")]

    run(scenario)


def test_models_and_readiness(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            headers = {"authorization": "Bearer key-of-bob"}
            async with s.session.get(s.url + "/v1/models", headers=headers) as reply:
                assert [card["id"] for card in (await reply.json())["data"]] == [MODEL]
            async with s.session.get(s.url + "/v1/models") as reply:
                assert reply.status == 401
            async with s.session.get(s.url + "/ready") as reply:
                assert reply.status == 200
                assert await reply.json() == {"ready": True, "prefill": 1, "decode": 1}
            s.d.state = "starting"
            async with s.session.get(s.url + "/ready") as reply:
                assert reply.status == 503
                assert (await reply.json())["decode"] == 0
            async with s.session.get(s.url + "/health") as reply:
                assert reply.status == 200

    run(scenario)


def test_nothing_is_left_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            for _ in range(3):
                async with s.post(chat(stream=True)) as reply:
                    await reply.read()
            await until(lambda: not s.pipeline.loads.counts)
            await s.counted("kvferry_requests_in_flight 0.0")

    run(scenario)
