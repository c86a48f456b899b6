"""What answers amount to: a hit where it is due, nothing where nothing is, and verdicts."""

from __future__ import annotations

import msgspec
import pytest

from bench.audit import report
from bench.audit.asking import Answer, Known, known, streamed, whole
from bench.audit.deterministic.case import Case, not_tried
from bench.audit.deterministic.scene import Sizes
from bench.audit.findings import Finding, Part, Verdict, worst
from bench.audit.refusals import listening
from bench.audit.refusals.attempt import Attempt, not_made, row
from bench.audit.refusals.listening import Listener
from bench.client import failed
from bench.reporting.page import render_page
from bench.reporting.text import render_text
from kvstore.cluster import ClusterConfig, Dram, Network, Proxy

HIT = Answer(200, path="decode-only", prompt=70, cached=64, tiers={"gpu": 64, "dram": 0})
MISS = Answer(200, path="disaggregated", planned="prefill", prompt=70)


def case(*answers: Answer, tokens: int = 64, tier: str = "gpu", path: str = "") -> Finding:
    made = Case("row")
    for answer in answers:
        made.hit(answer, tokens, "the owner", tier=tier, path=path)
    return made.finding()


def test_exactly_what_was_expected_is_a_hit() -> None:
    found = case(HIT, path="decode-only")
    assert found.verdict == "pass"
    assert (found.figures["hits"], found.figures["expected"], found.figures["found"]) == (1, 64, 64)


@pytest.mark.parametrize(
    "found",
    [
        case(HIT, tokens=32),
        case(HIT, tokens=96),
        case(HIT, tier="dram"),
        case(HIT, path="disaggregated"),
        case(MISS),
        case(Answer(503, "status 503")),
    ],
)
def test_anything_else_makes_a_row_invalid(found: Finding) -> None:
    assert (found.verdict, found.figures["hits"]) == ("invalid", 0)
    assert "the owner" in found.why


def looked(answer: Answer) -> Finding:
    made = Case("row")
    made.hit(HIT, 32, "a control that fails")
    made.miss(answer, "the other")
    return made.finding()


def test_whatever_a_stranger_finds_is_a_failure_whatever_the_control_says() -> None:
    assert looked(MISS).verdict == "invalid"
    leak = looked(HIT)
    assert (leak.verdict, leak.figures["foreign"]) == ("fail", 64)
    unforeseen = looked(Answer(200, path="decode-only", planned="prefill", prompt=70))
    assert (unforeseen.verdict, unforeseen.figures["foreign"]) == ("fail", 70)
    indexed = looked(Answer(200, path="disaggregated", known=Known(32, 0, 16)))
    assert (indexed.verdict, indexed.figures["indexed"]) == ("fail", 48)
    alone = looked(Answer(200, path="decode-only", planned="decode-only", prompt=70))
    assert alone.figures["foreign"] == 0


def test_a_stranger_without_an_answer_proves_nothing() -> None:
    made = Case("row")
    made.miss(Answer(0, "no answer"), "the other")
    assert made.finding().verdict == "invalid"


def test_the_index_is_compared_exactly() -> None:
    made = Case("row")
    made.knows(Known(32, 32, 32), Known(32, 32, 32), "owner")
    assert made.finding().verdict == "pass"
    made.knows(Known(32, 0, 32), Known(32, 32, 32), "owner")
    assert made.finding().verdict == "invalid"
    made.unknown(Known(0, 0, 1), "other")
    assert made.finding().verdict == "fail"
    assert not_tried("row", "why").verdict == "not tried"


def test_answers_are_read_from_either_kind() -> None:
    plan = '{"plan": "prefill", "prefill": [{"gpu": 32, "dram": 64}], "decode": [{"gpu": 16}]}'
    headers = {"x-kvferry-path": "p", "x-kvferry-cached": "gpu=1, dram=2", "x-kvferry-plan": plan}
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}}
    answer = whole(200, headers, msgspec.json.encode({"usage": usage}))
    assert (answer.path, answer.prompt, answer.cached) == ("p", 9, 3)
    assert answer.tiers == {"gpu": 1, "dram": 2}
    assert (answer.known, answer.planned) == (Known(32, 64, 16), "prefill")
    assert whole(404, {}, b"no").error == "status 404: no"
    assert whole(200, {}, b"no").error
    assert streamed(failed(0.0, "gone")).error == "gone"
    assert known({"prefill": [], "decode": []}) == Known()


def test_sizes_put_prompts_where_they_are_meant_to_lie() -> None:
    sizes = Sizes(32, 256)
    assert (sizes.below_chunk, sizes.part, sizes.rest) == (224, 16, 96)
    assert [sizes.whole_blocks(tokens) for tokens in (0, 32, 33, 64, 65)] == [0, 0, 32, 32, 64]
    assert Sizes(256, 256).below_chunk == 512


def part(*verdicts: Verdict) -> Part:
    rows = [Finding(name=f"row {at}", verdict=one) for at, one in enumerate(verdicts)]
    return Part(name="deterministic", findings=rows, metrics={"x": 1.0})


def test_the_worst_verdict_counts() -> None:
    assert worst([]) == "not tried"
    assert part("pass", "not tried").verdict == "pass"
    assert part("pass", "inconclusive").verdict == "inconclusive"
    assert part("inconclusive", "invalid").verdict == "invalid"
    assert part("invalid", "fail", "pass").verdict == "fail"


def test_what_an_audit_comes_to() -> None:
    assert report.verdict([part("pass", "not tried")], full=True).valid
    assert not report.verdict([part("pass"), part("fail")], full=False).valid
    assert not report.verdict([part("invalid")], full=False).valid
    assert report.verdict([part("pass", "inconclusive")], full=False).valid
    assert not report.verdict([part("pass", "inconclusive")], full=True).valid
    assert not report.verdict([part("not tried")], full=False).valid


def test_the_report_names_every_row_and_needs_no_network() -> None:
    arms = {"other_hit": [1.0, 2.0], "other_miss": [1.5, 2.5]}
    times = Part(name="statistical", findings=[Finding(name="ks", verdict="pass")], detail=arms)
    parts = [part("pass", "fail", "not tried"), times]
    judged = report.verdict(parts, full=False)
    document = report.document(parts, "where", judged)
    page, text = render_page(document), render_text(document)
    for shown in (page, text):
        assert "row 1" in shown
        assert "FAILED" in shown
        assert "fail, 1 of 3 rows not tried" in shown.lower()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert report.metrics(parts) == {"x": 1.0}
    told = report.detail(parts)
    assert msgspec.json.decode(msgspec.json.encode(told))["deterministic"]["verdict"] == "fail"


def test_attempts() -> None:
    refused, let_in = Attempt("a", refused=True), Attempt("b", refused=False, told="status 200")
    assert row("doors", [refused]).verdict == "pass"
    assert row("doors", [refused], "nobody answers").verdict == "invalid"
    found = row("doors", [refused, let_in], "nobody answers")
    assert (found.verdict, found.figures) == ("fail", {"tried": 2, "refused": 1})
    assert "b: status 200" in found.why
    assert row("doors", []).verdict == "not tried"
    unheard = Attempt("c", refused=False, told="no answer", answered=False)
    found = row("doors", [refused, unheard])
    assert (found.verdict, found.figures) == ("invalid", {"tried": 2, "refused": 1})
    assert "c: no answer" in found.why
    assert row("doors", [let_in, unheard]).verdict == "fail"
    assert not_made("doors", "why").verdict == "invalid"


def test_what_no_door_of_lmcaches_keeps_out_is_told() -> None:
    assert listening.dram(ClusterConfig()).verdict == "inconclusive"
    assert listening.dram(ClusterConfig(profile="strict")).verdict == "not tried"
    assert listening.dram(ClusterConfig(dram=Dram(enabled=False))).verdict == "not tried"


def test_ports_that_may_be_open() -> None:
    listeners = [
        Listener(host, port)
        for host in ("0.0.0.0", "::", "10.0.0.1", "127.0.0.1", "::1")
        for port in (8000, 7090, 7100, 7201, 40000)
    ]
    kinds: tuple[tuple[Network, set[int]], ...] = (
        (Network(kind="ipc"), {8000}),
        (Network(kind="tcp"), {8000, 7100, 7201}),
    )
    for network, meant in kinds:
        config = ClusterConfig(network=network, proxy=Proxy(port=8000))
        for one, attempt in zip(listeners, listening.judged(listeners, config), strict=True):
            assert attempt.refused == (one.loopback or one.port in meant), (one, network)
