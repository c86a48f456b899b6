"""Every error a client can meet: OpenAI's shape, the right status, never a 200 with an error."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import openai
import pytest

from proxy import app
from tests.support.proxy_fakes import MODEL, Stage, chat, completion, events, run, stage, until

pytestmark = pytest.mark.timeout(60)


async def refused(s: Stage, status: int, body: Any, **options: Any) -> dict[str, Any]:
    """Posts ``body``; checks status and shape; returns the error object."""
    async with s.post(body, **options) as reply:
        raw = await reply.read()
        assert reply.status == status, raw
        assert reply.content_type == "application/json"
        assert reply.headers["x-request-id"]
        error = json.loads(raw)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["code"] is None or isinstance(error["code"], str)
        assert "Traceback" not in error["message"]
        assert ("retry-after" in reply.headers) == (status in {429, 503})
        return dict(error)


@pytest.mark.parametrize("key", ["", "wrong", "key-of-alic"])
def test_wrong_key(tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            error = await refused(s, 401, chat(), key=key)
            assert error["code"] == "invalid_api_key"
            assert not s.d.seen
            await s.counted('tenant=""')

    with caplog.at_level(logging.DEBUG):
        run(scenario)
    assert not key or key not in caplog.text


def test_hints_that_are_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            error = await refused(s, 400, chat(prompt_cache_key=7))
            assert (error["type"], error["param"]) == ("invalid_request_error", "prompt_cache_key")
            headers = {"x-session-affinity": "x" * 300}
            error = await refused(s, 400, chat(), headers=headers)
            assert error["param"] == "x-session-affinity"
            assert not s.d.seen

    run(scenario)


def test_no_key_at_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            for value in (None, "Basic abc", "key-of-alice", "Bearer"):
                headers = {} if value is None else {"authorization": value}
                url = s.url + "/v1/completions"
                async with s.session.post(url, json=completion(), headers=headers) as reply:
                    assert reply.status == 401
                    assert reply.headers["www-authenticate"] == "Bearer"

    run(scenario)


MALFORMED = {
    "json": (b'{"model": ', None),
    "utf-8": (b'{"model": "\xff"}', None),
    "surrogate": (b'{"model": "\\ud800"}', None),
    "nesting": (b"[" * 100_000, None),
    "array": (b"[]", None),
    "empty": (b"", None),
    "model": (chat(model=3), "model"),
    "stream": (chat(stream="yes"), "stream"),
    "stream-options": (chat(stream_options=1), "stream_options"),
    "include-usage": (chat(stream_options={"include_usage": 2}), "stream_options.include_usage"),
    "no-messages": ({"model": MODEL}, "messages"),
    "messages": (chat(messages="hi"), "messages"),
    "none": (chat(messages=[]), "messages"),
    "message": (chat(messages=["hi"]), "messages[0]"),
    "no-role": (chat(messages=[{"content": "hi"}]), "messages[0].role"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path: Path, case: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            body, param = MALFORMED[case]
            error = await refused(s, 400, body)
            assert error["param"] == param
            assert error["type"] == "invalid_request_error"
            assert not s.d.seen

    run(scenario)


def test_unknown_role_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            messages = [{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}]
            error = await refused(s, 400, chat(messages=messages))
            assert "'wizard'" in error["message"]
            assert error["param"] == "messages[1].role"

    run(scenario)


def test_unknown_model(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            error = await refused(s, 404, chat(model="gpt-9"))
            assert error["code"] == "model_not_found"
            assert "gpt-9" in error["message"]

    run(scenario)


def test_body_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            big = json.dumps(completion(prompt="x" * (1 << 20))).encode()
            await refused(s, 413, big, route="completions")

            async def pieces() -> Any:
                for start in range(0, len(big), 1 << 16):
                    yield big[start : start + (1 << 16)]

            headers = {"authorization": "Bearer key-of-alice"}  # no content-length
            url = s.url + "/v1/completions"
            async with s.session.post(url, data=pieces(), headers=headers) as reply:
                assert reply.status == 413

    run(scenario)


def test_a_body_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.2)

    async def scenario() -> None:
        async with stage(tmp_path) as s:

            async def never() -> Any:
                yield b"{"
                await asyncio.Event().wait()

            headers = {"authorization": "Bearer key-of-alice"}
            url = s.url + "/v1/completions"
            async with s.session.post(url, data=never(), headers=headers) as reply:
                assert reply.status == 408
            await s.counted('status="408"')

    run(scenario)


def test_unknown_route_and_method(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            async with s.session.get(s.url + "/v1/nothing") as reply:
                assert reply.status == 404
                assert (await reply.json())["error"]["message"]
            async with s.session.get(s.url + "/v1/completions") as reply:
                assert reply.status == 405
                assert (await reply.json())["error"]["message"]

    run(scenario)


def test_no_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.state = "draining"
            await refused(s, 503, chat())
            s.directory.live.clear()
            await refused(s, 503, chat())
            s.directory.live.append(s.d)
            s.d.state, s.d.http = "ready", f"unix:{tmp_path}/nobody"
            await refused(s, 503, chat())
            await refused(s, 503, chat(n=2))

    run(scenario)


def test_too_many_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, max_requests=1) as s:
            s.d.hold = asyncio.Event()
            first = asyncio.create_task(s.post(chat()).__aenter__())
            await s.d.arrived.wait()
            await refused(s, 503, chat())
            s.d.hold.set()
            assert (await first).status == 200

    run(scenario)


def test_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, request_seconds=0.3) as s:
            s.d.hold = asyncio.Event()
            await refused(s, 504, chat())
            await asyncio.wait_for(s.d.aborted.wait(), 1)

    run(scenario)


def test_deadline_within_a_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, request_seconds=0.4) as s:
            s.d.hold_after = 2
            async with s.post(chat(stream=True)) as reply:
                assert reply.status == 200
                assert events(await reply.read())[-1]["error"]["code"] == "timeout"

    run(scenario)


WORKER_ERRORS = [
    (400, 400, "bad temperature", "BadRequestError"),
    (404, 404, "no such thing", "NotFoundError"),
    (422, 422, "unprocessable", "UnprocessableEntityError"),
    (501, 501, "not implemented", "NotImplementedError"),
    (500, 503, "EngineDeadError /some/file.py", "InternalServerError"),
    (401, 503, "token", "Unauthorized"),
]


@pytest.mark.parametrize(("theirs", "ours", "message", "kind"), WORKER_ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_decode_refuses(
    tmp_path: Path, theirs: int, ours: int, message: str, kind: str, stream: bool
) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            fields = {"message": message, "type": kind, "param": "temperature", "code": theirs}
            s.d.refusal = (theirs, {"error": fields})
            error = await refused(s, ours, chat(stream=stream))
            assert (error["message"] == message) == (theirs == ours)
            assert error["code"] != theirs

    run(scenario)


def test_render_refuses_before_any_leg(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            fields = {"message": "no tools here", "type": "BadRequestError", "code": 400}
            s.d.render_refusal = (400, {"error": {**fields, "param": "tools"}})
            error = await refused(s, 400, chat())
            assert error == {
                "message": "no tools here",
                "type": "invalid_request_error",
                "param": "tools",
                "code": None,
            }
            assert not s.d.generated
            assert not s.p.seen

    run(scenario)


@pytest.mark.parametrize(("route", "param"), [("chat", "messages"), ("completions", "prompt")])
def test_too_long_a_prompt_names_both_lengths(tmp_path: Path, route: str, param: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            text = (
                "This model's maximum context length is 8192 tokens. However, your prompt "
                "contains at least 8193 input tokens, which exceeds this limit."
            )
            fields = {"message": text, "type": "BadRequestError", "param": "x", "code": 400}
            s.d.render_refusal, s.d.length = (400, {"error": fields}), 9123
            body = chat() if route == "chat" else completion()
            error = await refused(s, 400, body, route=route)
            assert "8192" in error["message"]
            assert "9123" in error["message"]
            assert error["code"] == "context_length_exceeded"
            assert error["param"] == param

    run(scenario)


def test_an_error_as_first_event_is_an_http_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.error_after = 0
            await refused(s, 503, chat(stream=True))

    run(scenario)


def test_an_error_within_a_stream_is_forwarded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.error_after = 2
            async with s.post(chat(stream=True)) as reply:
                got = events(await reply.read())
            assert got[2] == {
                "error": {"message": "boom", "type": "InternalServerError", "code": 500}
            }
            assert got[3] == "[DONE]"

    run(scenario)


def test_decode_lost_within_a_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.drop_after = 2
            async with s.post(chat(stream=True)) as reply:
                got = events(await reply.read())
            assert got[-1]["error"]["type"] == "server_error"
            assert "[DONE]" not in got

    run(scenario)


def test_decode_lost_before_answering(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.drop_before = True
            await refused(s, 503, chat())

    run(scenario)


def test_our_own_fault_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:

            def broken(_names: object) -> dict[str, Any]:
                raise ValueError("my secret prompt")

            s.directory.held = broken  # type: ignore[method-assign, assignment]
            error = await refused(s, 500, chat())
            assert error["message"] == "Internal error."

    run(scenario)
    assert "ValueError at" in caplog.text
    assert "my secret prompt" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_no_prompt_salt_or_key_in_any_log(
    tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            messages = [{"role": "user", "content": "canary-of-the-prompt"}]
            async with s.post(chat(messages=messages, stream=stream)) as reply:
                await reply.read()
            s.p.refusal = (500, {"error": {"message": "canary-of-the-prompt"}})
            async with s.post(chat(messages=messages, stream=stream)) as reply:
                await reply.read()
            salt = s.d.generated[0].body["cache_salt"]
            await until(lambda: caplog.text.count("path=") >= 2)
            for secret in ("canary", salt, "key-of-alice", "cluster-token", "Paris"):
                assert secret not in caplog.text

    with caplog.at_level(logging.INFO):
        run(scenario)


def test_the_openai_client_understands(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            base = s.url + "/v1"
            hi: Any = [{"role": "user", "content": "hi"}]
            client = openai.AsyncOpenAI(base_url=base, api_key="key-of-alice", max_retries=0)
            whole = await client.chat.completions.create(model=MODEL, messages=hi)
            assert whole.choices[0].message.content == "Paris is the capital."
            stream = await client.chat.completions.create(
                model=MODEL, messages=hi, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.prompt_tokens_details is not None
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="gpt-9", messages=hi)
            s.d.error_after = 2
            broken = await client.chat.completions.create(model=MODEL, messages=hi, stream=True)
            with pytest.raises(openai.APIError):
                assert [chunk async for chunk in broken]
            wrong = openai.AsyncOpenAI(base_url=base, api_key="wrong", max_retries=0)
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()

    run(scenario)
