"""The watch over who computes."""

from types import SimpleNamespace

import pytest

from bench import noise


def times(user: float, idle: float) -> object:
    fields = {"user": user, "system": 0.0, "idle": idle, "guest": 0.0, "guest_nice": 0.0}

    class Times(tuple):
        __slots__ = ()

    row = Times(fields.values())
    for name, value in fields.items():
        setattr(Times, name, value)
    return row


def test_what_neither_system_nor_client_computed_was_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 10.0])
    machine = iter([times(100.0, 100.0), times(115.0, 105.0)])
    client = iter([1.0, 4.0])
    monkeypatch.setattr(noise.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(noise.psutil, "cpu_times", lambda: next(machine))
    monkeypatch.setattr(
        noise.psutil,
        "Process",
        lambda pid: SimpleNamespace(
            pid=pid, cpu_times=lambda: SimpleNamespace(user=next(client), system=0.0)
        ),
    )
    # 15 core-seconds in all, 3 of them ours, over 10 seconds.
    assert noise.CpuWatch([]).others() == pytest.approx(1.2)
