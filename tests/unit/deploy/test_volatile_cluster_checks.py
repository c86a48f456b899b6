"""Addresses, commands and folders: who could read what the cluster holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy.volatile import cluster_checks
from deploy.volatile.cluster_checks import DRAM_NEVER, ENGINE_NEVER, LOOPBACK, Picture
from deploy.volatile.findings import State
from deploy.volatile.host import Host, Place
from kvstore import cluster
from kvstore.cluster import ClusterConfig

ENGINE = ("python", "--no-enable-log-requests", "--disable-uvicorn-access-log")
DRAM = ("python", "--host", LOOPBACK, "--http-host", LOOPBACK, "--disable-metrics")


def picture(text: str = "", **seen: object) -> Picture:
    """Of a cluster file; ``seen`` of its host."""
    host = replace(Host(environment={}, uid=7), **seen)  # type: ignore[arg-type]
    return Picture(cluster.parse(text), host, {"prefill": ENGINE}, DRAM)


def across(host: str, more: str = "") -> str:
    return (
        f'{more}\n[network]\nkind = "tcp"\n[prefill]\nhosts = ["{host}"]\n'
        f'[decode]\nhosts = ["{LOOPBACK}"]\n'
    )


@pytest.mark.parametrize("check", cluster_checks.CHECKS)
@pytest.mark.parametrize("profile", ["laptop", "strict"])
def test_the_defaults_are_fine(check: cluster_checks.Check, profile: str) -> None:
    assert check(picture(f'profile = "{profile}"')).state == "ok"


@pytest.mark.parametrize(
    ("host", "state"),
    [
        (LOOPBACK, "ok"),
        ("localhost", "ok"),
        ("::1", "ok"),
        ("10.0.0.1", "warning"),
        ("0.0.0.0", "warning"),
        ("", "warning"),
        ("kvferry.example", "warning"),
    ],
)
def test_a_proxy_beyond_this_host_is_warned_of(host: str, state: State) -> None:
    for profile in ("laptop", "strict"):
        text = f'profile = "{profile}"\n[proxy]\nhost = "{host}"'
        assert cluster_checks.proxy_address(picture(text)).state == state


@pytest.mark.parametrize(
    ("host", "laptop", "strict"),
    [
        ("127.0.0.1", "ok", "ok"),
        ("192.168.3.4", "ok", "ok"),
        ("fd00::4", "ok", "ok"),
        ("100.64.0.9", "ok", "ok"),
        ("8.8.8.8", "warning", "refused"),
        ("2606:4700::1", "warning", "refused"),
        ("0.0.0.0", "warning", "refused"),
        ("::", "warning", "refused"),
        ("worker-1", "warning", "warning"),
    ],
)
def test_workers_belong_on_a_private_network(host: str, laptop: State, strict: State) -> None:
    for profile, state in (("laptop", laptop), ("strict", strict)):
        seen = picture(across(host, f'profile = "{profile}"'))
        assert cluster_checks.worker_addresses(seen).state == state


def test_hosts_mean_nothing_where_all_is_on_one() -> None:
    text = 'profile = "strict"\n[prefill]\nhosts = ["8.8.8.8"]'
    assert cluster_checks.worker_addresses(picture(text)).state == "ok"


@pytest.mark.parametrize(
    ("ship", "host", "state"),
    [
        ('bulk = "authenticated"', "10.0.0.1", "warning"),
        ('transport = "nccl"', "10.0.0.1", "warning"),
        ('bulk = "authenticated"', LOOPBACK, "ok"),
        ("", "10.0.0.1", "ok"),
    ],
)
def test_kv_in_the_clear_is_warned_of(ship: str, host: str, state: State) -> None:
    assert cluster_checks.bulk(picture(f"{across(host)}[ship]\n{ship}\n")).state == state


@pytest.mark.parametrize("option", DRAM_NEVER)
def test_a_dram_tier_with_more_than_memory_is_refused(option: str) -> None:
    seen = replace(picture(), dram=(*DRAM, option, "x"))
    finding = cluster_checks.dram_command(seen)
    assert finding.state == "refused"
    assert option in finding.found


@pytest.mark.parametrize(
    "argv",
    [
        ("python", "--host", "0.0.0.0", "--http-host", LOOPBACK, "--disable-metrics"),
        ("python", "--host", LOOPBACK, "--http-host", "10.0.0.1", "--disable-metrics"),
        ("python", "--host", LOOPBACK, "--disable-metrics"),
        ("python", "--host", LOOPBACK, "--http-host", LOOPBACK),
    ],
)
def test_a_dram_tier_beyond_loopback_is_refused(argv: tuple[str, ...]) -> None:
    assert cluster_checks.dram_command(replace(picture(), dram=argv)).state == "refused"


def test_no_dram_tier_is_fine() -> None:
    assert cluster_checks.dram_command(replace(picture(), dram=())).state == "ok"


@pytest.mark.parametrize(
    ("address", "port", "state"),
    [
        (LOOPBACK, 7090, "ok"),
        ("0.0.0.0", 7091, "refused"),
        ("::", 7090, "refused"),
        ("0.0.0.0", 22, "ok"),
    ],
)
def test_the_dram_tiers_ports_are_looked_at(address: str, port: int, state: State) -> None:
    seen = picture(listening=((address, port),))
    assert cluster_checks.dram_command(seen).state == state


@pytest.mark.parametrize("option", ENGINE_NEVER)
def test_an_engine_that_tells_of_requests_is_refused(option: str) -> None:
    for word in (option, f"{option}=x"):
        seen = replace(picture(), engines={"prefill": ENGINE, "decode": (*ENGINE, word)})
        finding = cluster_checks.engine_commands(seen)
        assert finding.state == "refused"
        assert "decode" in finding.name


def test_an_engine_without_its_silence_is_refused() -> None:
    for left_out in ENGINE[1:]:
        argv = tuple(word for word in ENGINE if word != left_out)
        finding = cluster_checks.engine_commands(replace(picture(), engines={"decode": argv}))
        assert finding.state == "refused"
        assert left_out in finding.found


@pytest.mark.parametrize(
    ("place", "state", "word"),
    [
        (Place("/s/keys", 7, 0o700, True), "ok", ""),
        (Place("/s/keys", 7, 0o750, True), "refused", "chmod 700 /s/keys"),
        (Place("/s/keys/a", 7, 0o604, False), "refused", "chmod 600 /s/keys/a"),
        (Place("/s/keys", 8, 0o700, True), "refused", "run as that user"),
        (Place("/s", 7, 0o600, False), "refused", "choose another place for run_dir or state_dir"),
    ],
)
def test_what_is_private_must_be(place: Place, state: State, word: str) -> None:
    finding = cluster_checks.private_places(picture('state_dir = "/s"', places=(place,)))
    assert finding.state == state
    assert word in finding.fix


def test_the_real_commands_pass() -> None:
    from deploy import doctor
    from kvstore.machine import Machine

    config = ClusterConfig(run_dir="/r", state_dir="/s")
    for machine in (Machine("cpu", (0,)), Machine("cuda", (0,), ("0", "1"))):
        seen = doctor.picture(config, machine, {})
        assert cluster_checks.dram_command(seen).state == "ok"
        assert cluster_checks.engine_commands(seen).state == "ok"
        assert set(seen.engines) == {"prefill", "decode"}
