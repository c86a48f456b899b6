"""Models: found, refused with one line, or converted once and checked at every use."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from deploy import models
from deploy.models import BuiltIn
from kvstore.errors import ConfigError
from kvstore.launch import is_hub_id


def model_at(folder: Path, described: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def silent(_text: str) -> None:
    pass


def test_a_folder_with_a_model_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "m", {"architectures": ["LlamaForCausalLM"]})
    assert models.prepare(str(folder), tmp_path, silent) == str(folder)
    assert models.weight_bytes(folder) == len(b"weights")


def test_a_hub_id_passes_through(tmp_path: Path) -> None:
    assert models.prepare("org/model-1B", tmp_path, silent) == "org/model-1B"
    assert models.name_of("org/model-1B") == "org/model-1B"
    assert models.name_of("/models/mine") == "mine"


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "nothing", "a/b/c"])
def test_a_missing_model_is_one_line(path: str, tmp_path: Path) -> None:
    assert not is_hub_id(path)
    with pytest.raises(ConfigError, match="no model at") as caught:
        models.prepare(path, tmp_path, silent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({}, "names no architecture"),
        ([], "names no architecture"),
        ({"architectures": []}, "names no architecture"),
    ],
)
def test_a_folder_without_a_language_model_is_unsupported(
    described: object, reason: str, tmp_path: Path
) -> None:
    folder = model_at(tmp_path / "m", described)
    with pytest.raises(ConfigError, match=f"unsupported model.*{reason}"):
        models.prepare(str(folder), tmp_path, silent)


def test_a_folder_without_config_or_weights_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unsupported model.*no config\.json"):
        models.prepare(str(tmp_path), tmp_path, silent)
    folder = model_at(tmp_path / "m", {"architectures": ["LlamaForCausalLM"]})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        models.prepare(str(folder), tmp_path, silent)


@pytest.mark.parametrize(
    ("described", "heads"),
    [
        ({"num_key_value_heads": 2, "num_attention_heads": 4}, 2),
        ({"num_attention_heads": 4, "num_key_value_heads": None}, 4),
        ({"text_config": {"num_key_value_heads": 1}}, 1),
        ({"n_head": 12}, 0),
    ],
)
def test_kv_heads_are_what_the_configuration_says(
    described: dict[str, object], heads: int, tmp_path: Path
) -> None:
    assert models.kv_heads(model_at(tmp_path / "m", described)) == heads


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A built-in model called "toy" whose conversion copies its source; the conversions made."""
    package = tmp_path / "site" / "toy_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "toy.gguf").write_bytes(b"gguf")
    monkeypatch.syspath_prepend(str(package.parent))
    digest = hashlib.sha256(b"gguf").hexdigest()
    built_in = {"toy": BuiltIn((("toy_model", "toy.gguf"),), digest)}
    monkeypatch.setattr(models, "BUILT_IN", built_in)
    made: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "model.safetensors").write_bytes(source.read_bytes())

    monkeypatch.setattr(models, "_convert", convert)
    return made


def test_a_built_in_model_is_converted_once(toy: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = models.prepare("toy", cache, silent)
    assert models.prepare("toy", cache, silent) == first
    assert len(toy) == 1
    assert [path.name for path in (cache / "models").iterdir()] == ["toy"]  # nothing temporary


def test_a_model_in_pieces_is_joined_in_their_order(
    toy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = (("toy_model", "toy.gguf"), ("toy_model", "__init__.py"), ("toy_model", "toy.gguf"))
    (tmp_path / "site" / "toy_model" / "__init__.py").write_bytes(b"# toy\n")
    joined = b"gguf# toy\ngguf"
    built_in = BuiltIn(pieces, hashlib.sha256(joined).hexdigest())
    monkeypatch.setattr(models, "BUILT_IN", {"toy": built_in})
    folder = Path(models.prepare("toy", tmp_path / "cache", silent))
    assert (folder / "model.safetensors").read_bytes() == joined
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_conversion_is_made_anew(damage: str, toy: list[Path], tmp_path: Path) -> None:
    folder = Path(models.prepare("toy", tmp_path / "cache", silent))
    weights = folder / "model.safetensors"
    if damage == "changed":
        weights.write_bytes(b"GGUF")
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "tokenizer.json").write_text("{}")
    models.prepare("toy", tmp_path / "cache", silent)
    assert weights.read_bytes() == b"gguf"
    assert len(toy) == 2


def test_an_interrupted_conversion_leaves_nothing(
    toy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_source: Path, folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.prepare("toy", tmp_path / "cache", silent)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_source_with_another_checksum_is_refused(
    toy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        models, "BUILT_IN", {"toy": BuiltIn((("toy_model", "toy.gguf"),), "0" * 64)}
    )
    with pytest.raises(ConfigError, match="not the file expected"):
        models.prepare("toy", tmp_path / "cache", silent)
    assert toy == []


def test_a_model_whose_package_is_missing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        models, "BUILT_IN", {"toy": BuiltIn((("no_such_pkg", "x.gguf"),), "0" * 64)}
    )
    with pytest.raises(ConfigError, match="needs the package no-such-pkg"):
        models.prepare("toy", tmp_path, silent)
