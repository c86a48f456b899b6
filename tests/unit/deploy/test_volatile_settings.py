"""Forbidden settings are refused with a reason and a fix, and their values are never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.volatile import settings
from deploy.volatile.findings import Finding, Profile
from deploy.volatile.settings import Setting

WRONG = {
    "VLLM_LOGGING_LEVEL": "debug",
    "LMCACHE_LOG_LEVEL": "DEBUG",
    "LLGUIDANCE_LOG_LEVEL": "2",
    "FLASHINFER_LOGLEVEL": "10",
    "OTEL_TRACES_EXPORTER": "otlp",
    "VLLM_NO_USAGE_STATS": "0",
    "VLLM_DO_NOT_TRACK": "0",
    "DO_NOT_TRACK": "false",
    "LMCACHE_TRACK_USAGE": "true",
}
"""Values that are forbidden; of other settings 1 is."""
RIGHT = {
    "VLLM_LOGGING_LEVEL": ("INFO", "warning", "Error", ""),
    "LMCACHE_LOG_LEVEL": ("INFO", "ERROR"),
    "LLGUIDANCE_LOG_LEVEL": ("0", "1"),
    "FLASHINFER_LOGLEVEL": ("0", "1"),
    "OTEL_TRACES_EXPORTER": ("none",),
    "VLLM_NO_USAGE_STATS": ("1",),
    "VLLM_DO_NOT_TRACK": ("1", "true"),
    "DO_NOT_TRACK": ("1", "yes"),
    "LMCACHE_TRACK_USAGE": ("false",),
    "VLLM_TRACE_FUNCTION": ("0", "", "False"),
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": ("false",),
    "LMCACHE_LOCAL_DISK": ("", "false", "None"),
    "LMCACHE_MAX_LOCAL_DISK_SIZE": ("0",),
    "VLLM_PLUGINS": ("",),
    "CUDA_ENABLE_COREDUMP_ON_EXCEPTION": ("0",),
}
EVERY = tuple(settings.every())
PROFILES: tuple[Profile, ...] = ("laptop", "strict")


def flaws(environment: dict[str, str], profile: Profile = "laptop") -> list[Finding]:
    return [one for one in settings.check(environment, profile) if one.state != "ok"]


def wrong(name: str) -> str:
    return WRONG.get(name, "1")


def test_there_are_more_than_twenty_and_each_is_there_once() -> None:
    names = [setting.name for setting in EVERY]
    assert len(set(names)) == len(names) > 20


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.name)
def test_each_is_found_with_what_it_does_and_how_to_undo_it(setting: Setting) -> None:
    for profile in PROFILES:
        (finding,) = flaws({setting.name: wrong(setting.name)}, profile)
        assert finding.name == setting.name
        assert setting.would in finding.found
        assert finding.fix == f"unset {setting.name}"
        refused = profile == "strict" or setting.weight == "leak"
        assert finding.state == ("refused" if refused else "warning")


def test_an_open_door_is_a_warning_on_a_laptop() -> None:
    (finding,) = flaws({"VLLM_SERVER_DEV_MODE": "1"})
    assert finding.state == "warning"


@pytest.mark.parametrize(("name", "values"), RIGHT.items())
def test_values_that_write_nothing_are_fine(name: str, values: tuple[str, ...]) -> None:
    assert name in {setting.name for setting in EVERY}
    for value in values:
        assert flaws({name: value}) == []


def test_nothing_set_is_one_row_for_each_reader() -> None:
    found = settings.check({"PATH": "/bin", "HOME": "/root"}, "strict")
    assert [one.name for one in found] == list(settings.AREAS)
    assert {one.state for one in found} == {"ok"}


def test_what_children_get_anyway_is_fine() -> None:
    from kvstore.launch import CLOSED, QUIET

    assert flaws({**QUIET, **CLOSED}) == []


@given(
    st.sampled_from(EVERY),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789:/@", min_size=9).filter(
        lambda text: not any(text in setting.would for setting in EVERY)
    ),
)
def test_values_are_never_shown(setting: Setting, value: str) -> None:
    for finding in settings.check({setting.name: value}, "strict"):
        assert value not in f"{finding.name} {finding.found} {finding.fix}"
