"""Environment variables that must not be set, each with what it would do.

True for the pinned versions: a contract test looks every name up in the packages that read it, and
finds names there that this list does not know. kvferry's children would get some of these anew
(``kvstore.launch``), so that setting them has no effect; they are refused all the same, because
whoever set them expects one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deploy.volatile.findings import Finding, Profile, Weight, flaw, ok

_OFF = frozenset({"", "0", "false", "no", "off", "none"})
_QUIET_LEVELS = frozenset({"", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"})


def _is_set(value: str) -> bool:
    return value != ""


def _is_on(value: str) -> bool:
    return value.strip().lower() not in _OFF


def _is_off(value: str) -> bool:
    return value != "" and not _is_on(value)


def _is_not_one(value: str) -> bool:
    return value not in ("", "1")


def _is_not_false(value: str) -> bool:
    return value not in ("", "false")


def _is_debug(value: str) -> bool:
    return value.strip().upper() not in _QUIET_LEVELS


def _is_above_one(value: str) -> bool:
    return value.strip() not in ("", "0", "1")


@dataclass(frozen=True)
class Setting:
    """A variable, what follows ``when`` its value is so, and how much that weighs."""

    name: str
    would: str
    when: Callable[[str], bool] = _is_set
    weight: Weight = "leak"


LMCACHE_OPTIONS: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "LOCAL_DISK": ("LMCache keeps KV on a disk", _is_on),
    "MAX_LOCAL_DISK_SIZE": ("LMCache keeps KV on a disk", _is_on),
    "GDS_PATH": ("LMCache keeps KV on a disk", _is_set),
    "USE_GDS": ("LMCache keeps KV on a disk", _is_on),
    "MARU_PATH": ("LMCache keeps KV in storage of others", _is_set),
    "REMOTE_URL": ("LMCache sends KV to another server", _is_set),
    "AUDIT_ACTUAL_REMOTE_URL": ("LMCache sends KV to another server", _is_set),
    "REMOTE_CONFIG_URL": ("LMCache is configured by another server", _is_set),
    "REMOTE_STORAGE_PLUGINS": ("LMCache sends KV to another server", _is_set),
    "STORAGE_PLUGINS": ("LMCache keeps KV in storage of others", _is_set),
    "EXTERNAL_BACKENDS": ("LMCache keeps KV in storage of others", _is_set),
    "RUNTIME_PLUGIN_LOCATIONS": ("LMCache runs programs of others", _is_set),
    "PLUGIN_LOCATIONS": ("LMCache runs programs of others", _is_set),
    "EXTRA_CONFIG": ("LMCache is configured past kvferry", _is_set),
    "EXTERNAL_LOOKUP_CLIENT": ("LMCache tells another server what it holds", _is_set),
    "ENABLE_P2P": ("LMCache sends KV to other servers", _is_on),
    "ENABLE_PD": ("LMCache sends KV to other servers", _is_on),
    "ENABLE_XPYD": ("LMCache sends KV to other servers", _is_on),
    "NIXL_BACKENDS": ("LMCache sends KV to other servers or to a disk", _is_set),
    "ENABLE_CONTROLLER": ("LMCache tells another server what it holds", _is_on),
    "INTERNAL_API_SERVER_ENABLED": ("LMCache shows its settings over HTTP", _is_on),
    "RUN_SCRIPT_API_ENABLED": ("LMCache runs scripts that are sent to it", _is_on),
    "ENABLE_CHUNK_STATISTICS": ("LMCache records hashes of prompts", _is_on),
}
"""LMCache's own options; each also with EC_ before it, for its encoder cache."""

_LMCACHE = (
    Setting("LMCACHE_CONFIG_FILE", "LMCache is configured past kvferry"),
    *(
        Setting(f"LMCACHE_{prefix}{option}", would, when)
        for prefix in ("", "EC_")
        for option, (would, when) in LMCACHE_OPTIONS.items()
    ),
    Setting("LMCACHE_COORDINATOR_URL", "LMCache reports to another server"),
    Setting(
        "LMCACHE_COORDINATOR_EVENT_REPORTING",
        "LMCache tells another server what it holds",
        _is_on,
    ),
    Setting("LMCACHE_REQUEST_TELEMETRY_TYPE", "LMCache reports requests to another server", _is_on),
    Setting("LMCACHE_LOG_LEVEL", "LMCache writes debug logs", _is_debug),
)

_VLLM = (
    Setting("VLLM_LOGGING_LEVEL", "vLLM logs prompts", _is_debug),
    Setting("VLLM_LOGGING_CONFIG_PATH", "vLLM logs what, and where, that file says"),
    Setting("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "vLLM logs every answer", _is_on),
    Setting("VLLM_TRACE_FUNCTION", "vLLM writes what it calls to a file", _is_on),
    Setting("VLLM_DEBUG_DUMP_PATH", "vLLM dumps what it compiles to a disk"),
    Setting("VLLM_MEDIA_CACHE", "vLLM keeps what requests refer to on a disk"),
    Setting("VLLM_V1_USE_OUTLINES_CACHE", "vLLM keeps requests' schemas on a disk", _is_on),
    Setting("VLLM_ENABLE_RESPONSES_API_STORE", "vLLM keeps answers for as long as it runs", _is_on),
    Setting("VLLM_ALLOW_INSECURE_SERIALIZATION", "vLLM runs code that it is sent", _is_on),
    Setting("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "equal request ids share KV", _is_on),
    Setting("LLGUIDANCE_LOG_LEVEL", "vLLM logs requests' grammars", _is_above_one),
    Setting("FLASHINFER_LOGLEVEL", "FlashInfer logs what it computes with", _is_above_one),
    Setting("VLLM_SERVER_DEV_MODE", "workers serve vLLM's debugging routes", _is_on, "host"),
    Setting(
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "requests can make vLLM load other weights",
        _is_on,
        "host",
    ),
    Setting("VLLM_PLUGINS", "vLLM loads code of others into the engine", _is_set, "host"),
)

_TORCH = (
    Setting("TORCH_LOGS", "torch writes debug logs"),
    Setting("TORCH_LOGS_OUT", "torch writes its logs to a file"),
    Setting("TORCH_TRACE", "torch writes what it compiles to a folder"),
    Setting("TORCH_COMPILE_DEBUG", "torch dumps what it compiles to a disk", _is_on),
    Setting("TORCHDYNAMO_REPRO_AFTER", "torch saves a failing step with its inputs"),
    Setting("TORCHINDUCTOR_SAVE_ARGS", "torch saves what its kernels are given", _is_on),
    Setting(
        "AOT_INDUCTOR_DEBUG_INTERMEDIATE_VALUE_PRINTER", "torch saves what it computes", _is_on
    ),
    Setting("KINETO_CONFIG", "torch's profiler can be switched on from outside"),
    Setting("KINETO_USE_DAEMON", "torch's profiler can be switched on from outside"),
    Setting("ENABLE_PYTORCH_EXECUTION_TRACE", "torch records what it computes", _is_on),
)

_GPU = (
    Setting("CUDA_ENABLE_COREDUMP_ON_EXCEPTION", "the driver dumps GPU memory to a file", _is_on),
    Setting("CUDA_ENABLE_USER_TRIGGERED_COREDUMP", "anyone of us can dump GPU memory", _is_on),
    Setting("CUDA_COREDUMP_FILE", "the driver dumps GPU memory to a file"),
    Setting("CUDA_INJECTION64_PATH", "a profiler is loaded into the engine"),
    Setting("NCCL_DEBUG_FILE", "NCCL writes debug logs to a file"),
)

_TRACING = (
    Setting("OTEL_EXPORTER_OTLP_ENDPOINT", "traces of requests are sent elsewhere"),
    Setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "vLLM sends traces of requests elsewhere"),
    Setting("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "logs are sent elsewhere"),
    Setting("OTEL_TRACES_EXPORTER", "traces of requests are sent elsewhere", _is_on),
    Setting("OTEL_LOGS_EXPORTER", "logs are sent elsewhere", _is_on),
)

_TELEMETRY = (
    Setting("VLLM_NO_USAGE_STATS", "vLLM reports its usage", _is_not_one),
    Setting("VLLM_DO_NOT_TRACK", "vLLM reports its usage", _is_off),
    Setting("DO_NOT_TRACK", "vLLM and LMCache report their usage", _is_off),
    Setting("LMCACHE_TRACK_USAGE", "LMCache reports its usage", _is_not_false),
)

_PYTHON = (
    Setting("PYTHONASYNCIODEBUG", "Python logs what slow callbacks were given"),
    Setting("PYTHONDEVMODE", "Python logs what slow callbacks were given"),
)

AREAS: Mapping[str, tuple[Setting, ...]] = {
    "LMCache settings": _LMCACHE,
    "vLLM settings": _VLLM,
    "torch settings": _TORCH,
    "GPU settings": _GPU,
    "tracing settings": _TRACING,
    "telemetry settings": _TELEMETRY,
    "Python settings": _PYTHON,
}
"""The closed list, by who reads it."""


def every() -> Iterable[Setting]:
    """All settings of all areas."""
    return (setting for area in AREAS.values() for setting in area)


def check(environment: Mapping[str, str], profile: Profile) -> list[Finding]:
    """One finding for each setting that is wrong, and one for each area where none is."""
    found: list[Finding] = []
    for area, settings in AREAS.items():
        wrong = [one for one in settings if one.when(environment.get(one.name, ""))]
        found += [_flaw(one, profile) for one in wrong]
        if not wrong:
            found.append(ok(area, f"{len(settings)} looked at, none is set so that it leaks"))
    return found


def _flaw(setting: Setting, profile: Profile) -> Finding:
    said, fix = f"set so that {setting.would}", f"unset {setting.name}"
    return flaw(setting.name, profile, setting.weight, said, fix)
