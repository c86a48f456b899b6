"""Whatever is sent to any route, well-formed or not, is answered, and never with a failure of ours.

Cases are made by schemathesis of the interface's description (``tests.support.api_schema``), and of
raw bytes beside. Behind the proxy are stand-in workers that judge what reaches them as vLLM does,
so what would fail a worker fails here. ``KVFERRY_API_CASES`` says how many (``make audit``: 20000).
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import pytest
import requests
import schemathesis.openapi
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from kvstore.credentials import TOKEN_HEADER
from proxy import admin
from proxy.app import create
from tests.support import api_schema
from tests.support.proxy_fakes import KEYS, MODEL, TOKEN, stage
from tests.support.vllm_judge import judge

CASES = int(os.environ.get("KVFERRY_API_CASES", "80"))
LONG = CASES > 1000
KEY = {"authorization": f"Bearer {KEYS['alice']}"}
OPERATOR = {TOKEN_HEADER: TOKEN}

pytestmark = [
    pytest.mark.timeout(3600 if LONG else 120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@dataclass
class Served:
    """A running proxy: where it is, and what its workers could not stand."""

    clients: str
    operators: str
    failures: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    session: requests.Session = field(default_factory=requests.Session)

    def check(self, what: str, reply: requests.Response) -> None:
        """An answer, of a status that a client can do something about."""
        self.answers[what, reply.status_code] += 1
        assert reply.status_code < 500, (reply.status_code, reply.content[:500], self.failures[-1:])
        if reply.status_code >= 400:
            told = reply.json()["error"]
            assert told.keys() == {"message", "type", "param", "code"}
            assert isinstance(told["message"], str)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """On an event loop of its own, since schemathesis waits for every answer."""
    folder = tmp_path_factory.mktemp("api")
    ready: threading.Event = threading.Event()
    found: list[tuple[Served, Callable[[], object]]] = []

    async def serve() -> None:
        done = asyncio.Event()
        async with stage(folder) as s:
            known = Served(s.url, s.admin_url)
            s.p.judge = s.d.judge = lambda path, body: _judged(known, path, body)
            loop = asyncio.get_running_loop()
            found.append((known, lambda: loop.call_soon_threadsafe(done.set)))
            ready.set()
            while not done.is_set():
                await asyncio.sleep(0.05)
                s.d.seen.clear()
                s.p.seen.clear()

    patch = pytest.MonkeyPatch()
    patch.setattr(admin, "CONFIRM_SECONDS", 0.001)
    patch.setattr(admin, "WIPE_SECONDS", 0.001)
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    known, stop = found[0]
    yield known
    stop()
    thread.join(30)
    patch.undo()
    assert not known.failures
    total = sum(known.answers.values())
    print(f"\n{total} cases:", *(f"{what} {n}" for what, n in sorted(known.answers.items())))


def _judged(served: Served, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    if not path.startswith("/v1/"):
        return None
    status, why = judge(path, body)
    if status == 500:
        served.failures.append(f"{path}: {why}: {json.dumps(body)[:1000]}")
    return None if status == 200 else (status, {"error": {"message": why, "code": status}})


def many(share: float) -> settings:
    """So many examples: that part of the cases."""
    return settings(
        max_examples=max(1, round(CASES * share)),
        derandomize=not LONG,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


OPERATIONS = {
    "POST /v1/chat/completions": (0.4, api_schema.clients),
    "POST /v1/completions": (0.25, api_schema.clients),
    "POST /kvferry/explain/{tenant}/{route}": (0.15, api_schema.operators),
    "POST /admin/tenants/{tenant}/flush": (0.02, api_schema.operators),
    "GET /admin/tenants": (0.01, api_schema.operators),
    "GET /metrics": (0.01, api_schema.operators),
    "GET /v1/models": (0.01, api_schema.clients),
    "GET /health": (0.01, api_schema.clients),
    "GET /ready": (0.01, api_schema.clients),
}
MODES = {GenerationMode.POSITIVE: 0.6, GenerationMode.NEGATIVE: 0.4}


def test_every_route_is_described() -> None:
    apps: list[Any] = [create(None, None), admin.create_admin(None, None)]  # type: ignore[arg-type]
    routes = {
        f"{method} {one.path}" for app in apps for one in app.routes for method in one.methods
    }
    assert routes == OPERATIONS.keys()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_described(served: Served, operation: str, mode: GenerationMode) -> None:
    share, document = OPERATIONS[operation]
    method, path = operation.split(" ")
    described = schemathesis.openapi.from_dict(document(MODEL))[path][method]
    if mode is GenerationMode.NEGATIVE and method == "GET":
        pytest.skip("nothing of it can be wrong")
    base = served.clients if document is api_schema.clients else served.operators
    keys = st.sampled_from([*[KEY | OPERATOR] * 9, KEY, OPERATOR, {}])

    @many(share * MODES[mode])
    @given(case=described.as_strategy(generation_mode=mode), headers=keys, leave=LEAVE)
    def run(case: schemathesis.Case, headers: dict[str, str], leave: frozenset[int]) -> None:
        case.body = _fewer(case.body, leave)
        sent = case.as_transport_kwargs(base_url=base)
        sent["headers"] = {**(sent.get("headers") or {}), **headers}
        served.check(operation, served.session.request(**sent, timeout=60))

    run()


LEAVE = st.frozensets(st.integers(0, 9), max_size=2)


def _fewer(body: Any, leave: frozenset[int]) -> Any:
    """``body`` with a part of its fields: of all that there are, one is always wrong."""
    if not isinstance(body, dict):
        return body
    usual = {"model", "messages", "prompt"}
    return {
        name: body[name] for name in body if name in usual or crc32(name.encode()) % 10 in leave
    }


NUMBERS = st.sampled_from(
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-0",
        "1" * 400,
        f"{1 << 64}",
        f"-{1 << 63}",
        "0.1e-9",
    ]
)
TEXTS = st.sampled_from(
    [r'"\ud800"', r'"\udc00x"', r'"\u0000"', '"\x00"', '"\xff"', '"' + "e\u0301" * 3000 + '"', '""']
)
NESTED = st.integers(1, 5000).map(lambda depth: "[" * depth + "]" * depth)
VALUES = NUMBERS | TEXTS | NESTED | st.sampled_from(["null", "true", "{}", "[]", '{"a":1,"a":2}'])
NAMES = st.sampled_from(sorted({*api_schema._OURS, "messages", "prompt", "n", "seed", "tools"}))


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A body with a value in it that JSON has not, or that is more than it should be."""
    usual = f'"model":"{MODEL}","prompt":"hi","messages":[{{"role":"user","content":"hi"}}]'
    text = f'{{{usual},"{draw(NAMES)}":{draw(VALUES)}}}'
    raw = text.encode("latin-1" if draw(st.booleans()) else "utf-8", "replace")
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw


RAW = broken() | st.binary(max_size=64) | st.sampled_from([b"\xef\xbb\xbf{}", b"[" * 100_000])
TYPES = st.sampled_from(
    [None, "application/json", "text/plain", "application/x-www-form-urlencoded", "x", "a/b;c=d"]
)
GENERATE = ["/v1/chat/completions", "/v1/completions"]
PATHS = st.sampled_from([*GENERATE * 5, "/v1/models", "/v1/embeddings", "/", "/%00", "//x"])
METHODS = st.sampled_from(["POST"] * 20 + ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW"])
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["cache-control", "x-prompt-cache-isolation-key", "x-session-affinity", "content-encoding"]
    ),
    PRINTABLE.map(str.strip),
)


def test_raw(served: Served) -> None:
    @many(0.2)
    @given(raw=RAW, kind=TYPES, path=PATHS, method=METHODS, headers=HEADERS)
    def run(raw: bytes, kind: str | None, path: str, method: str, headers: dict[str, str]) -> None:
        given_headers = {**KEY, **headers, **({} if kind is None else {"content-type": kind})}
        reply = served.session.request(
            method, served.clients + path, data=raw, headers=given_headers, timeout=60
        )
        if method == "HEAD" or reply.content == b"Invalid HTTP request received.":
            assert reply.status_code < 500
            served.answers["no body", reply.status_code] += 1
            return  # or the server's own
        served.check("raw", reply)

    run()
