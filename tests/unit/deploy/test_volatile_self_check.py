"""The whole check: its order, what a start makes of it, its table and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from deploy.volatile import report, self_check
from deploy.volatile.cluster_checks import Picture
from deploy.volatile.findings import Finding, Profile, flaw, ok
from deploy.volatile.host import Host
from kvstore.cluster import ClusterConfig
from kvstore.errors import ConfigError

FINE = ok("swap", "none on a disk")
WARNED = flaw("proxy.host", "strict", "note", "reached over a network", "bind 127.0.0.1")
REFUSED = flaw("LMCACHE_LOCAL_DISK", "laptop", "leak", "set so that it leaks", "unset it")


def picture(environment: Mapping[str, str], profile: Profile) -> Picture:
    host = Host(environment=environment, disk_swaps=("/dev/sda2",))
    return Picture(ClusterConfig(profile=profile), host, {}, ())


def test_settings_come_first_and_every_name_is_there_once() -> None:
    findings = self_check.examine(picture({"TORCH_TRACE": "/traces"}, "laptop"))
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert names.index("TORCH_TRACE") < names.index("swap") < names.index("proxy.host")


@pytest.mark.parametrize(("profile", "state"), [("laptop", "warning"), ("strict", "refused")])
def test_the_profile_of_the_file_decides(profile: Profile, state: str) -> None:
    findings = {one.name: one for one in self_check.examine(picture({}, profile))}
    assert findings["swap"].state == state


def test_a_start_says_nothing_where_nothing_is() -> None:
    assert self_check.require((FINE,)) == ""


def test_a_start_counts_warnings() -> None:
    assert self_check.require((FINE, WARNED)) == "1 warning: kvferry doctor"
    assert self_check.require((WARNED, WARNED)) == "2 warnings: kvferry doctor"


def test_a_start_is_refused_with_reason_and_fix() -> None:
    with pytest.raises(ConfigError) as caught:
        self_check.require((FINE, WARNED, REFUSED))
    assert str(caught.value) == "LMCACHE_LOCAL_DISK: set so that it leaks: unset it"
    with pytest.raises(ConfigError, match=r"unset it \(and 2 more: kvferry doctor\)$"):
        self_check.require((REFUSED, REFUSED, REFUSED))


def test_the_table_is_aligned_and_counts() -> None:
    lines = report.table((FINE, WARNED, REFUSED), "laptop").splitlines()
    assert lines == [
        "ok       swap                none on a disk",
        "warning  proxy.host          reached over a network",
        "                             do: bind 127.0.0.1",
        "refused  LMCACHE_LOCAL_DISK  set so that it leaks",
        "                             do: unset it",
        "",
        "profile laptop: 1 ok, 1 warning, 1 refused",
    ]


def test_the_json_has_all_of_it() -> None:
    told = json.loads(report.as_json((FINE, WARNED, REFUSED), "strict"))
    findings = told.pop("findings")
    assert told == {"profile": "strict", "refused": 1, "warnings": 1}
    assert [Finding(**finding) for finding in findings] == [FINE, WARNED, REFUSED]
