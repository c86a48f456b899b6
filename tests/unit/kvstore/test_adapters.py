"""An adapter's revision is what its two files hold; what is no adapter is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import adapters
from kvstore.adapters import CONFIG, WEIGHTS
from kvstore.cluster import Adapter, ClusterConfig, Model
from kvstore.errors import ConfigError


def written(folder: Path, weights: bytes = b"weights", **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8, **fields}))
    (folder / WEIGHTS).write_bytes(weights)
    return folder


def serving(*folders: Path) -> ClusterConfig:
    named = tuple(Adapter(name=folder.name, path=str(folder)) for folder in folders)
    return ClusterConfig(adapters=named, model=Model(name="base"))


def revision(folder: Path) -> str:
    (found,) = adapters.read(serving(folder))
    return found.served.revision


def test_equal_files_are_one_revision_wherever_they_lie(tmp_path: Path) -> None:
    first, copy = written(tmp_path / "poet"), tmp_path / "copy"
    shutil.copytree(first, copy)
    (copy / "README.md").write_text("what no engine reads")
    assert revision(first) == revision(copy)
    (found,) = adapters.read(serving(first))
    assert found.served.model == f"poet@{found.served.revision}"
    assert found.served.path == str(first)
    # What announces carry.
    assert msgspec.convert(msgspec.to_builtins(found.served), type(found.served)) == found.served


@given(st.tuples(st.binary(max_size=40), st.binary(max_size=40)), st.booleans())
def test_other_files_are_another_one(
    tmp_path_factory: pytest.TempPathFactory, weights: tuple[bytes, bytes], ranked: bool
) -> None:
    home = tmp_path_factory.mktemp("adapters")
    one = written(home / "a", weights[0])
    other = written(home / "b", weights[1], r=9 if ranked else 8)
    assert (revision(one) == revision(other)) == (weights[0] == weights[1] and not ranked)


def test_what_one_file_loses_the_other_does_not_gain(tmp_path: Path) -> None:
    """No bytes move between files without its being another revision."""
    one, other = written(tmp_path / "a", b" weights"), written(tmp_path / "b", b"weights")
    with (other / CONFIG).open("a") as file:
        file.write(" ")
    assert revision(one) != revision(other)


@pytest.mark.parametrize(
    ("fields", "rank"),
    [({}, 8), ({"r": 64}, 64), ({"rank_pattern": {"q_proj": 32}}, 32), ({"rank_pattern": {}}, 8)],
)
def test_the_rank_is_the_highest_of_all(tmp_path: Path, fields: dict[str, Any], rank: int) -> None:
    (found,) = adapters.read(serving(written(tmp_path / "a", **fields)))
    assert found.rank == rank


def test_what_was_touched_since_is_told(tmp_path: Path) -> None:
    """Even where it reads as before: meanwhile an engine may have read something else."""
    folder = written(tmp_path / "a")
    config = serving(folder)
    found = adapters.read(config)
    assert adapters.are(found, config)
    shutil.copy(folder / WEIGHTS, tmp_path / "kept")
    (folder / WEIGHTS).write_bytes(b"other")
    assert not adapters.are(found, config)
    shutil.move(tmp_path / "kept", folder / WEIGHTS)
    assert revision(folder) == found[0].served.revision
    assert not adapters.are(found, config)
    found = adapters.read(config)
    (folder / WEIGHTS).unlink()
    assert not adapters.are(found, config)


def test_a_link_that_shows_elsewhere_is_another_revision(tmp_path: Path) -> None:
    written(tmp_path / "a", b"a")
    written(tmp_path / "b", b"b")
    link = tmp_path / "current"
    link.symlink_to("a")
    found = adapters.read(serving(link))
    assert found[0].served.revision == revision(tmp_path / "a")
    link.unlink()
    link.symlink_to("b")
    assert not adapters.are(found, serving(link))
    assert revision(link) == revision(tmp_path / "b")


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda folder: shutil.rmtree(folder), f"has no {CONFIG}"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
        (lambda folder: (folder / CONFIG).write_bytes(b"{"), CONFIG),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe"), CONFIG),
        (lambda folder: (folder / CONFIG).write_bytes(b"[" * 9999), CONFIG),
        (lambda folder: written(folder, r="8"), "r"),
        (lambda folder: written(folder, r=0), "r"),
        (lambda folder: written(folder, r=513), "r"),
        (lambda folder: written(folder, rank_pattern={"q": 9999}), "rank_pattern"),
        (lambda folder: written(folder, peft_type="PREFIX_TUNING"), "'PREFIX_TUNING'"),
    ],
)
def test_what_is_no_adapter_is_refused_in_one_line(
    tmp_path: Path, spoilt: object, said: str
) -> None:
    folder = written(tmp_path / "poet")
    spoilt(folder)  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        adapters.require(serving(folder))
    assert said in str(caught.value)
    assert str(caught.value).startswith("adapter poet")
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_adapter_and_stops_nobody(tmp_path: Path) -> None:
    folder = written(tmp_path / "poet")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(ConfigError, match=WEIGHTS):
        adapters.read(serving(folder))


def test_an_adapter_is_not_named_like_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapter base is named like the model"):
        adapters.require(serving(written(tmp_path / "base")))
    with pytest.raises(ConfigError, match="named like the model"):
        adapters.require_names(serving(tmp_path / "nowhere" / "base"))
    adapters.require_names(serving(tmp_path / "nowhere" / "poet"))
