"""The engine's command line and environment, and what is read of its words."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

import decode.engine
import prefill.engine
from deploy import dram
from kvstore import cluster, launch, vitals
from kvstore.adapters import ReadAdapter
from kvstore.admission import PASSED_PATHS
from kvstore.cluster import ClusterConfig, WorkerSettings
from kvstore.engine_facts import SETTINGS_KEY, worker_settings
from kvstore.machine import Machine
from kvstore.messages import Role, ServedAdapter
from kvstore.relay_engine import replay_endpoint
from prefill.engine import BEHIND

CPU = Machine("cpu", (0, 1))


def settings(config: ClusterConfig, role: Role, index: int = 0) -> WorkerSettings:
    return WorkerSettings(
        worker=cluster.worker_name(role, index),
        role=role,
        generation="abc",
        addresses=cluster.addresses(config, Path("/run/k"), role, index),
        state_dir="/state",
        ship=config.ship,
        dram=config.dram,
        model_name="m",
    )


def flag(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_both_roles_differ_in_their_connector_only() -> None:
    config = ClusterConfig()
    p = prefill.engine.command(config, settings(config, "prefill"), CPU, False).argv
    p = p[len(BEHIND) :]
    d = decode.engine.command(config, settings(config, "decode"), CPU, False).argv
    differing = {a for a, b in zip(p, d, strict=True) if a != b}
    assert {a for a in differing if a.startswith("--")} == set()
    for argv, name, role in (
        (p, "PrefillConnector", "kv_producer"),
        (d, "DecodeConnector", "kv_consumer"),
    ):
        transfer = json.loads(flag(argv, "--kv-transfer-config"))
        assert (transfer["kv_connector"], transfer["kv_role"]) == (name, role)
        assert transfer["kv_load_failure_policy"] == "recompute"


@pytest.mark.parametrize(
    ("machine", "second"), [(CPU, True), (Machine("cuda", (0, 1), ("0", "1")), False)]
)
def test_prefill_comes_second_where_engines_share_cores(machine: Machine, second: bool) -> None:
    config = ClusterConfig()
    p = prefill.engine.command(config, settings(config, "prefill"), machine, False).argv
    d = decode.engine.command(config, settings(config, "decode"), machine, False).argv
    assert (p[: len(BEHIND)] == BEHIND) is second
    assert d[: len(BEHIND)] != BEHIND


def test_no_engine_fetches_what_a_request_names() -> None:
    config = ClusterConfig()
    for engine, role in ((prefill.engine, "prefill"), (decode.engine, "decode")):
        command = engine.command(config, settings(config, role), CPU, False)  # type: ignore[arg-type]
        assert flag(command.argv, "--allowed-media-domains").endswith(".invalid")
        assert "--allowed-local-media-path" not in command.argv
        assert not [one for one in command.argv if one.startswith("--trust")]
        assert command.env["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
        assert command.env["VLLM_MEDIA_CACHE"] == ""


def test_the_connector_finds_its_settings() -> None:
    config = ClusterConfig()
    given = settings(config, "prefill")
    argv = prefill.engine.command(config, given, CPU, False).argv
    extra = json.loads(flag(argv, "--kv-transfer-config"))["kv_connector_extra_config"]
    assert launch.SETTINGS_KEY == SETTINGS_KEY
    assert worker_settings(extra) == given


def test_the_relay_listens_where_the_engine_publishes() -> None:
    config = ClusterConfig()
    given = settings(config, "decode")
    argv = decode.engine.command(config, given, CPU, False).argv
    events = json.loads(flag(argv, "--kv-events-config"))
    assert events["endpoint"] == given.addresses.events
    assert events["replay_endpoint"] == replay_endpoint(given.addresses.events)
    assert events["endpoint"].startswith("ipc:///")


def test_block_names_are_those_the_proxy_computes() -> None:
    config = cluster.parse("[model]\nblock_size = 32")
    command = decode.engine.command(config, settings(config, "decode"), CPU, False)
    assert flag(command.argv, "--prefix-caching-hash-algo") == "sha256_cbor"
    assert flag(command.argv, "--block-size") == "32"
    assert command.env["VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"] == "0"


def test_http_goes_where_the_addresses_say() -> None:
    ipc = ClusterConfig()
    argv = prefill.engine.command(ipc, settings(ipc, "prefill"), CPU, False).argv
    assert flag(argv, "--uds") == "/run/k/prefill-0.http"
    assert "--port" not in argv
    tcp = cluster.parse("[network]\nkind='tcp'\n[prefill]\ncount=2")
    argv = prefill.engine.command(tcp, settings(tcp, "prefill", 1), CPU, False).argv
    assert (flag(argv, "--host"), flag(argv, "--port")) == ("127.0.0.1", "7104")
    assert "--uds" not in argv


def test_nobody_is_let_in_without_the_gate() -> None:
    config = ClusterConfig()
    argv = prefill.engine.command(config, settings(config, "prefill"), CPU, False).argv
    assert flag(argv, "--middleware") == "prefill.gate.PrefillGate"
    argv = decode.engine.command(config, settings(config, "decode"), CPU, False).argv
    assert flag(argv, "--middleware") == "decode.gate.DecodeGate"


def test_kv_memory_is_exact_and_cores_are_the_workers_own() -> None:
    config = cluster.parse("[prefill]\ncount=2\nkv_gib=0.75\ncores=['0','1-3']")
    command = prefill.engine.command(config, settings(config, "prefill", 1), CPU, False)
    assert flag(command.argv, "--kv-cache-memory-bytes") == str(805306368)
    assert command.env["VLLM_CPU_OMP_THREADS_BIND"] == "1-3"
    assert "CUDA_VISIBLE_DEVICES" not in command.env


def test_gpus_are_dealt_out_to_prefill_first() -> None:
    config = cluster.parse("[prefill]\ncount=2")
    gpus = Machine("cuda", (0,), ("4", "5", "6"))
    workers: list[tuple[ModuleType, Role, int]] = [
        (prefill.engine, "prefill", 0),
        (prefill.engine, "prefill", 1),
        (decode.engine, "decode", 0),
        (decode.engine, "decode", 1),
    ]
    seen = [
        engine.command(config, settings(config, role, index), gpus, False).env[
            "CUDA_VISIBLE_DEVICES"
        ]
        for engine, role, index in workers
    ]
    assert seen == ["4", "5", "6", "4"]


def test_only_a_hub_id_may_ask_the_hub() -> None:
    local = ClusterConfig()
    hub = cluster.parse("[model]\npath='org/model'")
    for config, offline in ((local, "1"), (hub, None)):
        command = prefill.engine.command(config, settings(config, "prefill"), CPU, False)
        assert command.env.get("HF_HUB_OFFLINE") == offline


def test_parsers_are_passed_on_when_configured() -> None:
    config = cluster.parse("[model]\ntool_parser='hermes'\nreasoning_parser='qwen3'")
    argv = decode.engine.command(config, settings(config, "decode"), CPU, False).argv
    assert "--enable-auto-tool-choice" in argv
    assert flag(argv, "--tool-call-parser") == "hermes"
    assert flag(argv, "--reasoning-parser") == "qwen3"


def test_the_tier_listens_on_loopback_and_has_no_disk() -> None:
    config = msgspec.structs.replace(ClusterConfig(), run_dir="/run/k")
    argv = dram.command(config, False, False).argv
    assert flag(argv, "--host") == flag(argv, "--http-host") == "127.0.0.1"
    assert "--disable-metrics" in argv  # they would listen on every interface
    assert flag(argv, "--shm-name").startswith("lmcache_l1_pool_")
    assert not any("l2" in word for word in argv)
    module = json.loads(flag(argv, "--server-module"))
    feed = "zmq+ipc:///run/k/dram.feed"
    assert module["config"] == {"feed": feed, "operation_seconds": config.dram.operation_seconds}
    assert flag(argv, "--eviction-policy") == "noop"  # our module evicts
    assert importlib.util.find_spec(module["module_path"])


def test_compiling_is_off_where_it_is_switched_off() -> None:
    for text, eager in (("off", True), ("on", False)):
        config = cluster.parse(f"[model]\ncompile = '{text}'")
        argv = decode.engine.command(config, settings(config, "decode"), CPU, False).argv
        assert ("--enforce-eager" in argv) is eager


def test_two_run_folders_have_two_segments() -> None:
    first, second = (msgspec.structs.replace(ClusterConfig(), run_dir=d) for d in ("/a", "/b"))
    assert dram.segment(first) != dram.segment(second)


METRICS = b"""# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{_block_size_resolved="True",block_size="32",num_gpu_blocks="1456"} 1.0
"""


def test_facts_are_read_off_the_running_engine() -> None:
    models = json.dumps({"data": [{"id": "m", "max_model_len": 8192}]}).encode()
    assert vitals.facts(models, METRICS) == vitals.Facts(8192, 32, 1456)


@pytest.mark.parametrize(
    "models", [b"", b"[]", b'{"data":[]}', b'{"data":[{"max_model_len":"x"}]}']
)
def test_missing_facts_are_zero(models: bytes) -> None:
    assert vitals.facts(models, b"") == vitals.Facts(0, 0, 0)


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: Model architectures ['FooForX'] are not supported for now. Supported: [...]",
        "entry.py: error: unrecognized arguments: --nope",
        "kvstore.errors.ConfigError: a model with 6 KV cache groups cannot ship KV yet",
    ],
)
def test_what_cannot_get_better_is_recognised(line: str) -> None:
    reason = vitals.hopeless(["INFO fine", f"(EngineCore pid=1) {line}"])
    assert reason is not None
    assert "\n" not in reason


@pytest.mark.parametrize(
    "line",
    [
        "Value error, Model architectures ['X'] are not supported for now. Supported: dict_keys(",
        (
            "The checkpoint you are trying to load has model type `foo` but Transformers does not "
            "recognize this architecture. This could be because of an issue with the checkpoint"
        ),
    ],
)
def test_an_unsupported_model_is_called_that(line: str) -> None:
    reason = vitals.hopeless([line])
    assert reason is not None
    assert reason.startswith("unsupported model: ")
    assert len(reason) < 100


def test_a_chance_failure_deserves_another_try() -> None:
    circular = "ImportError: cannot import name 'x' from partially initialized module 'y'"
    assert vitals.hopeless([circular]) is None
    assert vitals.last_error(["a", circular, "done"]) == circular
    assert vitals.last_error([]) == "it said nothing"


def test_a_worker_of_several_ranks_spreads_its_kv_and_takes_as_many_gpus() -> None:
    config = cluster.parse("[prefill]\nranks=2\nkv_gib=1\n[decode]\nranks=2\ncores=['0|1']")
    machine = Machine("cuda", (0, 1), ("a", "b", "c", "d"))
    command = decode.engine.command(config, settings(config, "decode"), machine, False)
    assert flag(command.argv, "--tensor-parallel-size") == "2"
    assert flag(command.argv, "--kv-cache-memory-bytes") == str(1 << 29)
    assert command.env["CUDA_VISIBLE_DEVICES"] == "c,d"
    on_cpu = decode.engine.command(config, settings(config, "decode"), CPU, False)
    assert on_cpu.env["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"


def test_every_slice_of_a_worker_has_ports() -> None:
    config = cluster.parse("[network]\nkind='tcp'\n[prefill]\ncount=2\n[decode]\nranks=2")
    assert config.slices == 2
    ships = [settings(config, "prefill", index).addresses.ship for index in range(2)]
    assert [ship.rpartition(":")[2] for ship in ships] == ["7101", "7109"]


def adapter(name: str, rank: int) -> ReadAdapter:
    return ReadAdapter(ServedAdapter(name, "0" * 16, f"/a=b,c/{name}"), rank, ())


def test_adapters_are_served_under_name_and_revision_and_never_read_again() -> None:
    config = ClusterConfig()
    plain = prefill.engine.command(config, settings(config, "prefill"), CPU, False)
    gpu = Machine("cuda", (0, 1), ("0",))
    assert launch.with_adapters(plain, [], gpu) == plain
    many = [adapter(f"a{number}", 9 + number) for number in range(12)]
    command = launch.with_adapters(plain, many, gpu)
    assert command.argv[: len(plain.argv)] == plain.argv
    assert flag(command.argv, "--max-lora-rank") == "32"
    assert flag(command.argv, "--max-cpu-loras") == "12"  # all of them stay
    assert flag(command.argv, "--max-loras") == "8"
    modules = [json.loads(word) for word in command.argv[-12:]]
    assert modules[3] == {"name": f"a3@{'0' * 16}", "path": "/a=b,c/a3"}
    assert command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert flag(launch.with_adapters(plain, many[:1], gpu).argv, "--max-loras") == "1"


@pytest.mark.parametrize(
    ("engine", "role"), [(prefill.engine, "prefill"), (decode.engine, "decode")]
)
def test_who_asks_for_development_mode_gets_it(engine: ModuleType, role: Role) -> None:
    """Benchmarks and tests on real engines empty engines' caches by it, through the gate."""
    config = ClusterConfig()
    command = engine.command(config, settings(config, role), CPU, False)
    assert "VLLM_SERVER_DEV_MODE" not in command.env
    assert "--no-log-error-stack" in command.argv
    assert "/reset_prefix_cache" in PASSED_PATHS


@pytest.mark.parametrize("number", [1, 12])
def test_on_cpu_no_adapter_has_the_last_place(number: int) -> None:
    """``tests/contract/test_adapter_flags.py`` has the reason."""
    plain = launch.Command((), {})
    argv = launch.with_adapters(plain, [adapter("a", 8)] * number, CPU).argv
    assert flag(argv, "--max-loras") == flag(argv, "--max-cpu-loras") == str(number + 1)
