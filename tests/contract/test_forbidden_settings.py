"""Every forbidden setting is one that the installed packages read, and none is overlooked.

A name of theirs that smells of writing or telling is forbidden, or is listed here with the reason
why it may be set. So an upgrade that brings new ones fails here until somebody has looked at them.
"""

from __future__ import annotations

import argparse
import mmap
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import lmcache
import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables
import pytest
import torch
import vllm
from lmcache.cli.commands.server import ServerCommand
from lmcache.v1 import config as lmcache_config
from lmcache.v1.distributed.config import parse_args_to_config
from lmcache.v1.mp_observability.config import parse_args_to_observability_config
from lmcache.v1.multiprocess.config import parse_args_to_coordinator_config
from vllm import envs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from deploy import doctor
from deploy.volatile import settings
from deploy.volatile.cluster_checks import DRAM_ALWAYS, DRAM_NEVER, ENGINE_ALWAYS, ENGINE_NEVER
from kvstore.cluster import ClusterConfig
from kvstore.launch import SERVER
from kvstore.machine import Machine

FORBIDDEN = frozenset(setting.name for setting in settings.every())
SMELL = re.compile(
    r"DUMP|LOG|TRAC|PROFIL|DEBUG|CACHE|STOR|RECORD|CAPTURE|SAVE|USAGE|TELEMETRY|TRACK|PLUGIN|MEDIA"
    r"|DISK|INSPECT|STATS|REMOTE|SERIALIZ|DEV_MODE|EXPORT|OTEL|COORDINATOR|RANDOMIZ|SNAPSHOT"
    r"|LORA|DIR$|PATH$|FILE$|URL$|HOST$"
)
READS = re.compile(r"""(?:environ(?:\.get)?|getenv)[\[(]\s*["']([A-Za-z0-9_]+)["']""")

HARMLESS = {
    "where libraries, weights or compiled kernels lie": """
        CUDA_PATH LD_LIBRARY_PATH ROCM_PATH VLLM_CUDART_SO_PATH VLLM_CUDA_COMPATIBILITY_PATH
        VLLM_NCCL_INCLUDE_PATH VLLM_NCCL_SO_PATH VLLM_MODEL_REDIRECT_PATH VLLM_CACHE_ROOT
        VLLM_ASSETS_CACHE VLLM_ASSETS_CACHE_MODEL_CLEAN VLLM_XLA_CACHE_PATH XDG_CACHE_HOME
        VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR
        FLYDSL_RUNTIME_CACHE_DIR VLLM_DISABLE_COMPILE_CACHE VLLM_COMPILE_CACHE_SAVE_FORMAT
        AWS_ENDPOINT_URL S3_ENDPOINT_URL ASCEND_HOME_PATH WINDIR""",
    "sizes, layouts and kernels of what stays in memory": """
        VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE VLLM_CPU_KVCACHE_SPACE
        VLLM_KV_CACHE_LAYOUT VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT VLLM_XGRAMMAR_CACHE_MB
        VLLM_SPARSE_INDEXER_MAX_LOGITS_MB VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN
        VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS VLLM_LORA_DISABLE_PDL
        VLLM_LORA_ENABLE_DUAL_STREAM VLLM_RANDOMIZE_DP_DUMMY_INPUTS NCCL_NO_CACHE
        VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME UCX_MEMTYPE_CACHE UCX_RCACHE_MAX_UNRELEASED""",
    "tells counts, sizes, times, types or names of steps": """
        VLLM_COMPUTE_NANS_IN_LOGITS VLLM_RAISE_ON_LOGIT_NANS VLLM_DEBUG_MFU_METRICS
        VLLM_DEBUG_WORKSPACE VLLM_GC_DEBUG VLLM_LOG_BATCHSIZE_INTERVAL VLLM_LOG_MODEL_INSPECTION
        VLLM_LOG_STATS_INTERVAL VLLM_PATTERN_MATCH_DEBUG VLLM_CUSTOM_SCOPES_FOR_PROFILING
        VLLM_NVTX_SCOPES_FOR_PROFILING PROMETHEUS_MULTIPROC_DIR TRACEPARENT TRACESTATE
        VLLM_BUILD_URL""",
    "how logs look, and where those of our levels go": """
        VLLM_CONFIGURE_LOGGING VLLM_LOGGING_COLOR VLLM_LOGGING_PREFIX VLLM_LOGGING_STREAM
        VLLM_DISABLE_LOG_LOGO""",
    "limits of VLLM_MEDIA_CACHE, or of downloads": """
        VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB VLLM_MEDIA_CACHE_MAX_SIZE_MB VLLM_MEDIA_CACHE_TTL_HOURS
        VLLM_MEDIA_CONNECTOR VLLM_MEDIA_FETCH_MAX_RETRIES VLLM_MEDIA_LOADING_THREAD_COUNT
        VLLM_MEDIA_URL_ALLOW_REDIRECTS""",
    "has no effect without a forbidden one": """
        OUTLINES_CACHE_DIR VLLM_LORA_RESOLVER_CACHE_DIR VLLM_LORA_RESOLVER_HF_REPO_LIST
        VLLM_USAGE_SOURCE VLLM_USAGE_STATS_SERVER LMCACHE_USAGE_TRACK_URL
        LMCACHE_USAGE_TRACK_INTERVAL LMCACHE_REQUEST_TELEMETRY_ENDPOINT
        LMCACHE_COORDINATOR_ADVERTISE_IP LMCACHE_COORDINATOR_EVENT_FLUSH_INTERVAL
        LMCACHE_COORDINATOR_HEARTBEAT_INTERVAL LMCACHE_RUNTIME_PLUGIN_CONFIG
        LMCACHE_AEROSPIKE_HOSTS LMCACHE_AEROSPIKE_NAMESPACE LMCACHE_AEROSPIKE_PASSWORD
        LMCACHE_AEROSPIKE_SET LMCACHE_AEROSPIKE_USERNAME LMCACHE_RESP_HOST LMCACHE_RESP_PASSWORD
        LMCACHE_RESP_PORT LMCACHE_RESP_USERNAME MOONCAKE_CONFIG_PATH MOONCAKE_STORAGE_ROOT_DIR""",
    "of connectors and programs that kvferry does not start": """
        VLLM_EC_SIDE_CHANNEL_HOST VLLM_NIXL_SIDE_CHANNEL_HOST VLLM_P2P_SIDE_CHANNEL_HOST
        VLLM_MOONCAKE_DISK_STAGING_USABLE_RATIO VLLM_MOONCAKE_STORE_TIER_LOG
        VLLM_RUST_FRONTEND_PATH RAY_USAGE_STATS_ENABLED CRIU_CUDA_PLUGIN_DIR
        VLLM_SNAPSHOT_TIMEOUT_S SAVE_TO_PYTORCH_BENCHMARK_FORMAT LMCACHE_USE_UPSTREAM_MP
        LMCACHE_FORCE_SKIP_SAVE LMCACHE_SERVER_URL LMCACHE_OFFLOAD_RPC_PORT LMCACHE_MQ_TIMEOUT
        LMCACHE_GPU_STAGING_BUFFER_BYTES BT_CREDENTIALS_PATH BT_APP_PROFILE
        BT_EXISTS_CACHE_SIZE BT_EXISTS_CACHE_TTL_SECONDS""",
    "where sockets of one host lie": "VLLM_RPC_BASE_PATH",
}
HARMLESS_OPTIONS = {
    "sizes, names and ports of what stays in memory": """
        max_local_cpu_size max_hidden_state_cpu_size save_decode_cache save_unfull_chunk
        cache_policy pre_caching_hash_algorithm enable_hidden_state_cache hidden_state_layers
        hidden_states_retrieve_mode""",
    "has no effect without a forbidden one": """
        chunk_statistics_auto_exit_target_unique_chunks chunk_statistics_auto_exit_timeout_hours
        chunk_statistics_auto_start_statistics chunk_statistics_strategy controller_pull_url
        controller_reply_url controller_url gds_backend gds_buffer_size gds_path_sharding
        internal_api_server_host internal_api_server_include_index_list
        internal_api_server_port_start internal_api_server_socket_path_prefix
        local_disk_path_sharding maru_pool_size remote_serde retrieve_locations store_location
        script_allowed_imports p2p_host p2p_init_ports p2p_lookup_ports pd_backend_mode
        pd_peer_host pd_proxy_host nixl_peer_host nixl_proxy_host""",
    "where the tier's own server is": "mp_host",
}
OPTION_SMELL = re.compile(
    r"DISK|REMOTE|URL|STOR|SAVE|RECORD|LOG|TRAC|DUMP|DEBUG|PLUGIN|HOST$|GDS|MARU|P2P|ENABLE_PD"
    r"|XPYD|BACKEND|CONTROLLER|SCRIPT|LOOKUP_CLIENT|EXTRA|RUNTIME|API_SERVER|LOCATIONS|STATISTICS"
    r"|CACHE_P|HIDDEN|MAX_LOCAL|PATH|HASH"
)


def listed(reasons: dict[str, str]) -> set[str]:
    return {name for names in reasons.values() for name in names.split()}


@cache
def read_by(package: str) -> frozenset[str]:
    """The names that the sources below ``package`` ask the environment for."""
    texts = (file.read_text(errors="replace") for file in Path(package).rglob("*.py"))
    return frozenset(name for text in texts for name in READS.findall(text))


def folder(module: object) -> str:
    return str(Path(str(module.__file__)).parent)  # type: ignore[attr-defined]


def names_of_vllm() -> set[str]:
    return set(envs.environment_variables) | read_by(folder(vllm))


def options_of_lmcache() -> set[str]:
    return {*lmcache_config._CONFIG_DEFINITIONS, *lmcache_config._CONFIG_ALIASES}


def test_every_forbidden_setting_of_vllm_is_read_by_it() -> None:
    ours = {one.name for one in settings.AREAS["vLLM settings"]} - {"FLASHINFER_LOGLEVEL"}
    assert ours <= names_of_vllm()


def test_every_forbidden_setting_of_lmcache_is_read_by_it() -> None:
    assert {option.lower() for option in settings.LMCACHE_OPTIONS} <= options_of_lmcache()
    assert lmcache_config._EC_ENV_PREFIX == "LMCACHE_EC_"
    options = {f"LMCACHE_{p}{o}" for p in ("", "EC_") for o in settings.LMCACHE_OPTIONS}
    others = {one.name for one in settings.AREAS["LMCache settings"]} - options
    assert others <= read_by(folder(lmcache))


def test_a_forbidden_option_really_opens_a_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("LMCACHE_LOCAL_DISK", "/tmp/kv"),
        ("LMCACHE_MAX_LOCAL_DISK_SIZE", "5"),
        ("LMCACHE_REMOTE_URL", "lm://elsewhere:1"),
    ):
        monkeypatch.setenv(name, value)
    read = lmcache_config.LMCacheEngineConfig.from_env()
    assert (read.local_disk, read.max_local_disk_size) == ("/tmp/kv", 5.0)
    assert read.remote_url == "lm://elsewhere:1"


def test_telemetry_is_switched_by_these_names() -> None:
    both = names_of_vllm() | read_by(folder(lmcache))
    assert {one.name for one in settings.AREAS["telemetry settings"]} <= both


def test_every_forbidden_setting_of_torch_is_in_it() -> None:
    ours = {one.name for one in settings.AREAS["torch settings"]}
    below = Path(folder(torch))
    places = ("_logging/_internal.py", "_inductor/config.py", "_dynamo/config.py")
    text = "".join((below / place).read_text() for place in (*places, "profiler/profiler.py"))
    missing = {name for name in ours if name not in text}
    with (below / "lib" / "libtorch_cpu.so").open("rb") as file:
        library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert {name for name in missing if library.find(name.encode()) < 0} == set()


def test_every_forbidden_setting_of_tracing_is_opentelemetrys() -> None:
    ours = {one.name for one in settings.AREAS["tracing settings"]}
    api, sdk = opentelemetry.environment_variables, opentelemetry.sdk.environment_variables
    assert ours <= {*vars(api), *vars(sdk)}
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" in read_by(folder(vllm))


@pytest.mark.parametrize("setting", settings.AREAS["Python settings"], ids=lambda one: one.name)
def test_python_really_logs_what_callbacks_were_given(setting: settings.Setting) -> None:
    program = (
        "import asyncio, time\n"
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    loop.slow_callback_duration = 0.01\n"
        "    loop.call_soon(lambda data: time.sleep(0.05), b'a prompt')\n"
        "    await asyncio.sleep(0.1)\n"
        "asyncio.run(main())\n"
    )
    for environment, leaks in (({}, False), ({setting.name: "1"}, True)):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert ("a prompt" in done.stderr) is leaks


def test_nothing_that_smells_is_overlooked() -> None:
    known = FORBIDDEN | listed(HARMLESS)
    theirs = names_of_vllm() | {
        name for name in read_by(folder(lmcache)) if name.startswith("LMCACHE_")
    }
    overlooked = {name for name in theirs if SMELL.search(name) and name not in known}
    assert overlooked == set()


def test_no_option_of_lmcache_that_smells_is_overlooked() -> None:
    known = {option.lower() for option in settings.LMCACHE_OPTIONS} | listed(HARMLESS_OPTIONS)
    theirs = {name for name in options_of_lmcache() if OPTION_SMELL.search(name.upper())}
    assert theirs - known == set()


def test_what_is_called_harmless_is_still_read() -> None:
    theirs = names_of_vllm() | read_by(folder(lmcache))
    assert listed(HARMLESS) - theirs == set()
    assert listed(HARMLESS_OPTIONS) - options_of_lmcache() == set()
    assert listed(HARMLESS) & FORBIDDEN == set()


# -- the options of what kvferry starts


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


@cache
def vllm_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    return parser


@cache
def lmcache_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    ServerCommand().add_arguments(parser)
    return parser


def commands() -> Iterable[tuple[str, ...]]:
    seen = doctor.picture(ClusterConfig(run_dir="/r", state_dir="/s"), Machine("cpu", (0,)), {})
    return (*seen.engines.values(), seen.dram)


def test_every_option_that_is_looked_for_exists() -> None:
    assert set(ENGINE_NEVER) | set(ENGINE_ALWAYS) <= flags_of(vllm_parser())
    assert set(DRAM_NEVER) | set(DRAM_ALWAYS) <= flags_of(lmcache_parser())


def test_engines_as_vllm_understands_them_tell_nothing() -> None:
    *engines, _ = commands()
    for argv in engines:
        read = vllm_parser().parse_args(list(argv[argv.index(SERVER) + 1 :]))
        assert not read.enable_log_requests
        assert not read.enable_log_outputs
        assert read.disable_uvicorn_access_log
        assert read.profiler_config.profiler is None
        assert read.otlp_traces_endpoint is None
        assert not read.collect_detailed_traces
        assert not read.log_error_stack
        assert read.kv_offloading_size is None
        assert read.ec_transfer_config is None
        assert read.allowed_local_media_path == ""
        assert not read.trust_remote_code


def test_the_dram_tier_as_lmcache_understands_it_has_memory_only() -> None:
    *_, argv = commands()
    read = lmcache_parser().parse_args(list(argv[argv.index("server") + 1 :]))
    assert (read.host, read.http_host) == ("127.0.0.1", "127.0.0.1")
    storage = parse_args_to_config(read)
    assert not storage.l2_adapter_config.adapters
    watched = parse_args_to_observability_config(read)
    assert (watched.metrics_enabled, watched.tracing_enabled) == (False, False)
    assert not parse_args_to_coordinator_config(read).url
