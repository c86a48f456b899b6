"""What engines are told of adapters, as vLLM itself reads it, and what it makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from vllm import envs
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.lora.ops.torch_ops import bgmv_expand, bgmv_shrink
from vllm.lora.peft_helper import PEFTHelper
from vllm.utils.argparse_utils import FlexibleArgumentParser

from kvstore import adapters, launch
from kvstore.adapters import CONFIG, FILES, MOST_RANK, WEIGHTS, ReadAdapter
from kvstore.cluster import Adapter, ClusterConfig
from kvstore.launch import Command
from kvstore.machine import Machine
from kvstore.messages import ServedAdapter
from tests.support.lora_adapters import config


def test_the_ranks_are_those_that_vllm_makes_room_for() -> None:
    assert get_args(MaxLoRARanks) == launch._LORA_RANKS
    assert max(launch._LORA_RANKS) == MOST_RANK


def test_vllm_understands_the_flags() -> None:
    known = [
        ReadAdapter(ServedAdapter(name, "0" * 16, f"/with = and, {name}"), 4, ())
        for name in ("poet", "clerk")
    ]
    command = launch.with_adapters(Command((), {}), known, Machine("cuda", (0,), ("0",)))
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(list(command.argv))
    assert args.enable_lora
    assert (args.max_loras, args.max_cpu_loras, args.max_lora_rank) == (2, 2, 8)
    assert [(one.name, one.path) for one in args.lora_modules] == [
        (one.served.model, one.served.path) for one in known
    ]


@pytest.mark.parametrize(
    "name", ["VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SKIP_MODEL_NAME_VALIDATION"]
)
def test_a_name_that_nobody_announced_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And neither looked for while an engine runs, nor answered by the base."""
    monkeypatch.setenv(name, "1")
    assert envs.environment_variables[name]() is True
    monkeypatch.setenv(name, launch.CLOSED[name])
    assert envs.environment_variables[name]() is False


@pytest.mark.parametrize("patterned", [False, True])
def test_the_rank_that_is_read_is_enough_for_vllm_and_no_more(
    tmp_path: Path, patterned: bool
) -> None:
    """What it takes of a folder is what a revision is made of."""
    assert FILES == (CONFIG, WEIGHTS) == ("adapter_config.json", "adapter_model.safetensors")
    told = config(16) | ({"rank_pattern": {"q_proj": 32}} if patterned else {})
    (tmp_path / CONFIG).write_text(json.dumps(told))
    (tmp_path / WEIGHTS).touch()
    cluster = ClusterConfig(adapters=(Adapter(name="poet", path=str(tmp_path)),))
    (found,) = adapters.read(cluster)
    assert found.rank == (32 if patterned else 16)
    helper = PEFTHelper.from_local_dir(str(tmp_path), None)
    helper.validate_legal(LoRAConfig(max_lora_rank=found.rank))
    with pytest.raises(ValueError, match="greater than max_lora_rank"):
        helper.validate_legal(LoRAConfig(max_lora_rank=8))


def test_on_cpu_a_token_of_the_base_is_given_to_the_last_place() -> None:
    """So that place is left empty. When this fails, vLLM does better, and the place can go."""
    base, first = -1, 0
    tokens = torch.tensor([first, base])
    for last in (0.0, 1.0):
        places = torch.stack([torch.ones(1, 4, 8), torch.full((1, 4, 8), last)])
        shrunk, grown = torch.zeros(2, 4), torch.zeros(2, 8)
        bgmv_shrink(torch.ones(2, 8), places, shrunk, tokens)
        bgmv_expand(shrunk, places.transpose(2, 3), grown, tokens)
        assert bool(grown[0].all())
        assert bool(grown[1].any()) == bool(last)
