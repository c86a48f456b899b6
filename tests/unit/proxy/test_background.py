"""What runs beside requests: the feed is what a proxy cannot do without."""

from __future__ import annotations

import asyncio
import signal

import pytest

from kvstore.errors import ConfigError
from proxy.background import running


async def forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def failing(after: asyncio.Event) -> None:
    await after.wait()
    raise ConfigError("it broke")


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sent: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    return sent


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_all_of_it_ends_with_the_proxy(signals: list[int]) -> None:
    async def scenario() -> None:
        ended: list[str] = []
        async with running(forever(ended, "feed"), {"other": forever(ended, "other")}):
            await settled()
            assert not ended
        assert sorted(ended) == ["feed", "other"]

    asyncio.run(scenario())
    assert not signals


def test_without_its_feed_a_proxy_stops(signals: list[int]) -> None:
    async def scenario() -> None:
        breaks = asyncio.Event()
        async with running(failing(breaks), {}):
            await settled()
            assert not signals
            breaks.set()
            await settled()
            assert signals == [signal.SIGTERM]

    asyncio.run(scenario())


def test_without_another_it_goes_on(signals: list[int], caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        breaks = asyncio.Event()
        breaks.set()
        async with running(forever([], "feed"), {"learning": failing(breaks)}):
            await settled()

    asyncio.run(scenario())
    assert not signals
    assert "learning ended: ConfigError: it broke" in caplog.text


def test_what_cannot_begin_is_raised(signals: list[int]) -> None:
    async def scenario() -> None:
        breaks = asyncio.Event()
        breaks.set()
        with pytest.raises(ConfigError, match="it broke"):
            async with running(failing(breaks), {}):
                pass

    asyncio.run(scenario())
    assert not signals
