"""The report of made-up facts: self-contained, escaped, and the same in both forms."""

import hashlib
import json
import math
import re
import stat
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.audit.privacy_report.samples import HOSTILE, attack, bad, bare, good, naming

from offsite.audit.attack.verdict import Verdict
from offsite.audit.bounds.counts import Guesses, Rates
from offsite.audit.empirical.judgement import CrowdFinding, DuelFinding, EmpiricalAudit
from offsite.audit.empirical.mechanism import Terms
from offsite.audit.empirical.plan import AuditPlan
from offsite.audit.empirical.scores import Reading
from offsite.audit.privacy_report.audit_facts import empirical_facts
from offsite.audit.privacy_report.facts import Missing, ProofFacts, ReportFacts
from offsite.audit.privacy_report.findings import Severity, conclusion, findings
from offsite.audit.privacy_report.page import page
from offsite.audit.privacy_report.report import DOCUMENT, PAGE, build_report, write_report
from offsite.audit.proof_file import read_proof
from offsite.emulator.privacy.proof.report import Check, Program, ProofReport, Subject
from offsite.secure.privacy.units import Unit

VOID = {"meta", "br", "hr"}
ALL = {"good": good, "bad": bad, "bare": bare}


class Page(HTMLParser):
    """Reads a page and insists that every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.data = ""
        self.feed(html)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        match self.stack[-1] if self.stack else "":
            case "script":
                self.data += data
            case "style":
                pass
            case _:
                self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(params=ALL, name="facts")
def facts_of(request: pytest.FixtureRequest) -> ReportFacts:
    return ALL[str(request.param)]()


def test_nothing_is_loaded_and_nothing_runs(facts: ReportFacts) -> None:
    html = build_report(facts).html
    found = Page(html)
    scripts = [attributes for name, attributes in found.elements if name == "script"]
    assert scripts == [{"type": "application/json", "id": "document"}]
    outside = {"src", "href", "srcset", "action", "data", "background", "style"}
    for name, attributes in found.elements:
        assert name not in {"link", "img", "iframe", "object", "embed", "form", "base", "a"}
        assert not outside & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]
    assert "url(" not in html and "@import" not in html and "://" not in html
    policies = [a["content"] for n, a in found.elements if a.get("http-equiv")]
    assert policies and str(policies[0]).startswith("default-src 'none'")


def test_text_of_others_stays_text() -> None:
    html = build_report(bad()).html
    assert "<script>alert" not in html and "\u202e" not in html and "\x1b" not in html
    assert "clinic &lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp;" in html
    assert json.loads(Page(html).data)["ledger"]["owner"] == HOSTILE


def test_page_and_document_say_the_same(facts: ReportFacts) -> None:
    report = build_report(facts)
    document, found = json.loads(report.json), Page(report.html)
    assert json.loads(found.data) == document
    assert hashlib.sha256(report.json).hexdigest() in found.text
    assert document["conclusion"] == report.conclusion.value
    for finding in findings(facts):
        assert finding.severity.value in found.text
    assert [f["text"] for f in document["findings"]] == [f.text for f in findings(facts)]
    assert report == build_report(facts)


def test_figures_stand_in_both_forms() -> None:
    facts = good()
    report = build_report(facts)
    document, text = json.loads(report.json), Page(report.html).text
    assert document["ledger"]["spent"] == 4.4 and "4.40 of 8" in text
    assert document["ledger"]["campaigns"][0]["mechanism"]["sampling"] == "16/2251"
    assert "16/2251" in text and "10⁻⁵" in text
    assert document["attack"]["judgement"]["verdict"] == "within"
    advantage = document["attack"]["membership"]["advantage"]
    assert f"{advantage['low']:.3f} to {advantage['high']:.3f}" in text
    assert document["attack"]["evidence_sha256"] in text
    assert document["empirical"]["bounds"][3]["epsilon"] == 3.4


def test_a_single_row_is_in_no_report() -> None:
    """The report has rates; losses and scores of rows stay in the evidence."""
    facts = good()
    assert not isinstance(facts.attack, Missing)
    report = build_report(facts)
    losses = facts.attack.attack.measured.members.after.nats
    scores = facts.attack.attack.membership.members
    for value in (*losses[:50], *scores[:50]):
        assert (
            repr(float(value)) not in report.html and repr(float(value)) not in report.json.decode()
        )


def test_every_plot_has_a_title_and_its_numbers(facts: ReportFacts) -> None:
    html = build_report(facts).html
    found = Page(html)
    names = [name for name, _ in found.elements]
    plots = [attributes for name, attributes in found.elements if name == "svg"]
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert names.count("figure") == names.count("details") == len(plots)
    assert "NaN" not in html
    places = {"d", "points", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height"}
    numbers = [
        str(value)
        for _, attributes in found.elements
        for name, value in attributes.items()
        if name in places
    ]
    assert bool(numbers) == bool(plots)
    assert not re.search(r"nan|inf", " ".join(numbers), re.IGNORECASE)


def test_a_plot_stays_inside_its_drawing(facts: ReportFacts) -> None:
    for name, attributes in Page(build_report(facts).html).elements:
        if name in {"circle", "rect", "line"}:
            places = [
                float(attributes[key] or 0) for key in ("x", "x1", "x2", "cx") if key in attributes
            ]
            assert all(0 <= place <= 420 for place in places), attributes
            assert all(float(attributes.get(key) or 0) >= 0 for key in ("width", "height"))


def test_the_worst_finding_is_the_conclusion() -> None:
    assert build_report(good()).conclusion is Severity.NOTE  # epsilon 8 is a weak promise
    assert build_report(bare()).conclusion is Severity.OPEN
    assert build_report(bad()).conclusion is Severity.FAILED
    subjects = [f.subject for f in findings(bad()) if f.severity is Severity.FAILED]
    assert set(subjects) == {
        "Ledger",
        "Privacy budget",
        "Start-up proof",
        "Empirical audit",
        "Attack on the adapter",
    }


def one_wrong(name: str) -> ReportFacts:
    """Good facts with one bad part."""
    facts, wrong = good(), bad()
    match name:
        case "ledger":
            return replace(facts, ledger=replace(facts.ledger, faults=wrong.ledger.faults))
        case "overspent":
            return replace(facts, ledger=replace(facts.ledger, exposed=9.0))
        case "proof without tests":
            return replace(facts, proof=ProofFacts("d1" * 32, ()))
        case _:
            return replace(facts, **{name: getattr(wrong, name)})


@pytest.mark.parametrize(
    "name", ["ledger", "overspent", "proof", "proof without tests", "empirical", "attack"]
)
def test_one_failure_is_enough_to_fail(name: str) -> None:
    facts = one_wrong(name)
    assert conclusion(findings(facts)) is Severity.FAILED
    assert "do not rely on the stated privacy loss" in build_report(facts).html


@pytest.mark.parametrize("name", ["proof", "empirical", "attack"])
def test_what_was_not_done_is_said(name: str) -> None:
    facts = replace(good(), **{name: Missing("the machine was too small")})
    report = build_report(facts)
    assert "Not done: the machine was too small" in report.html
    assert json.loads(report.json)[name] == {"missing": "the machine was too small"}
    assert any("too small" in finding.text for finding in findings(facts))


def test_an_undecided_attack_is_an_open_point() -> None:
    found = attack(0.0, rows=100, secrets=0)
    facts = replace(good(), ledger=naming(good().ledger, found), attack=found)
    told = [f for f in findings(facts) if f.subject == "Attack on the adapter"]
    assert [f.severity for f in told] == [Severity.OPEN]
    assert Verdict.UNDECIDED.value in build_report(facts).html
    assert "None were planted" in build_report(facts).html


@pytest.mark.parametrize("subject", ["Start-up proof", "Attack on the adapter"])
def test_evidence_that_the_ledger_does_not_name_is_an_open_point(subject: str) -> None:
    facts = good()
    facts = replace(facts, ledger=replace(facts.ledger, proofs=(), audits=()))
    told = [f.severity for f in findings(facts) if f.subject == subject]
    assert told[0] is Severity.OPEN and "may be the best of several" in build_report(facts).html


def test_record_as_unit_and_missing_receipts_are_hazards() -> None:
    facts = good()
    facts = replace(facts, ledger=replace(facts.ledger, unit=Unit.RECORD, countersigned=3))
    texts = " ".join(finding.text for finding in findings(facts))
    assert "about k times" in texts and "counter-signed 3 of 28" in texts


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    report = write_report(tmp_path, good())
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == report.html
    assert (tmp_path / DOCUMENT).read_bytes() == report.json
    for name in (PAGE, DOCUMENT):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_data_cannot_end_its_element() -> None:
    html = page(good(), {"x": "</script><script>alert(1)</script>&amp;"}, "00")
    assert html.count("<script") == 1 and html.count("</script") == 1
    assert json.loads(Page(html).data)["x"].startswith("</script>")


def test_an_empirical_audit_is_told_with_what_is_claimed_of_its_runs() -> None:
    crowd = CrowdFinding(Guesses(200, 40, 30), 1.2, 2.3, 0.4, 0.0125)
    duel = DuelFinding(Rates(50, 40, 50, 10), 1.9, 3.4, 0.01, 0.025)
    plan = AuditPlan(Terms(1.0, Fraction(1, 10), 20), canaries=200)
    crowds = dict.fromkeys(Reading, crowd)
    found = empirical_facts(EmpiricalAudit(plan, 4.4, 4.1, crowds, duel, ("entry 3", "entry 5")))
    assert found.is_refuted and found.canaries == 200 and found.confidence == 0.95
    assert [(bound.epsilon, bound.claimed) for bound in found.bounds] == [
        *[(1.2, 4.4), (2.3, 4.4)] * len(Reading),
        (1.9, 4.1),
        (3.4, 4.1),
    ]
    report = build_report(replace(good(), empirical=found))
    assert "The claim is refuted with 95 % confidence" in report.html
    assert "one run, f-DP, alternating sum" in report.html


def test_a_start_up_proof_is_told_check_by_check() -> None:
    subject = Subject(Program("per_example", bytes(32)), 10, 1.0, 0.8, "1/10", 0)
    checks = (
        Check("sensitivity", 1.0, 0.0, 1.0001, 0.0, "clipping that fails"),
        Check("p-value", 0.2, 1e-9, math.inf, 0.02, "noise that is not normal"),
        Check("norm", math.nan, -math.inf, 1.0, 0.5, "something"),
    )
    found = read_proof(ProofReport(subject, checks).to_json())
    assert [check.passed for check in found.checks] == [True, True, False] and not found.passed
    expected = [check.expected for check in found.checks]
    assert expected == ["0 to 1.0001", "at least 1e-09", "at most 1"]
    html = build_report(replace(good(), proof=found)).html
    assert "The engine failed on the real model: norm." in html and found.sha256 in html
