"""What the GPU's benchmark says of its figures; measuring them takes a GPU."""

from __future__ import annotations

import pytest
import torch

from bench import gpu_transport
from bench.gpu import paged
from bench.gpu.figures import Figure, figure, speeds

SLOW, FAST = [10.0 + n / 100 for n in range(10)], [20.0 + n / 100 for n in range(10)]


def test_a_bound_is_kept_by_the_lower_end_of_the_interval() -> None:
    found = figure("copy", 1.9, FAST, SLOW)
    assert found.ratio is not None
    assert found.ratio.low < found.ratio.ratio == pytest.approx(2.0, rel=0.01)
    assert found.kept
    assert figure("copy", found.ratio.low, FAST, SLOW).kept
    assert figure("copy", (found.ratio.low + found.ratio.ratio) / 2, FAST, SLOW).kept is False


def test_a_figure_without_bound_or_ratio_is_neither_kept_nor_missed() -> None:
    assert figure("copy", None, FAST, SLOW).kept is None
    assert Figure("copy", 0.9, missing="refused").kept is None


def test_speeds_are_bytes_of_every_way_in_every_round() -> None:
    calls: list[str] = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    found = speeds(ways, 1000, rounds=8)
    assert [len(found[name]) for name in "ab"] == [8, 8]
    assert all(speed > 0 for speed in found["a"])
    after_warm_up = "".join(calls[-16:])
    assert after_warm_up == "abba" * 4


def test_the_bounds_follow_the_size_of_the_pieces() -> None:
    assert [paged.bound_of(piece) for piece in paged.PIECES] == [0.85, 0.85, 0.85, 0.95, 0.95]
    names = [paged.size_name(piece) for piece in paged.PIECES]
    assert names == ["12k", "32k", "64k", "512k", "2m"]


def test_a_line_says_what_was_kept_missed_or_not_measured() -> None:
    assert gpu_transport.line(figure("copy", 1.5, FAST, SLOW)).endswith("kept")
    assert gpu_transport.line(figure("copy", 2.5, FAST, SLOW)).endswith("MISSED")
    assert "not measured: refused" in gpu_transport.line(Figure("copy", 0.8, missing="refused"))


def test_the_file_names_the_card_the_command_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    found = [figure("copy", 1.5, FAST, SLOW), Figure("ipc", 0.8, missing="refused")]
    written = gpu_transport.document(found, {"rounds": 10}, ["--rounds", "10"])
    assert written["command"] == "python bench/gpu_transport.py --rounds 10"
    assert written["metrics"] == {"copy": found[0].ratio.low if found[0].ratio else None}
    assert written["detail"]["not_measured"] == {"ipc": "refused"}  # type: ignore[index]
    assert written["environment"]["gpu"] == "a card"  # type: ignore[index]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_transport.main([]) == 2
    assert "no GPU" in capsys.readouterr().err
