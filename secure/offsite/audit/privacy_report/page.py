"""The page: one self-contained HTML document.

Rules: no script, no font, no picture, no style from anywhere else, and a content security policy that
would refuse them; text from ledgers and files is escaped (`markup`). The JSON document lies in the page
as data, so that one file is enough.
"""

import json
from datetime import UTC, datetime

from offsite.audit.privacy_report.attack_section import attack_section
from offsite.audit.privacy_report.facts import LedgerFacts, Limit, Missing, ReportFacts
from offsite.audit.privacy_report.findings import Finding, Severity, assurance, conclusion, findings
from offsite.audit.privacy_report.markup import Html, tag
from offsite.audit.privacy_report.pieces import badge, code, section, tile
from offsite.audit.privacy_report.sections import (
    algorithms,
    budget,
    exposure,
    never_ran_words,
    parameters,
    trust,
)
from offsite.audit.privacy_report.style import STYLE
from offsite.audit.privacy_report.words import small
from offsite.emulator.strict_json import JsonObject

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_SENTENCES = {
    Severity.GOOD: "everything that was checked is in order.",
    Severity.NOTE: "what was checked is in order; read the notes.",
    Severity.OPEN: "nothing failed, but there are open points.",
    Severity.FAILED: "something failed, so do not rely on the stated privacy loss.",
}


def page(facts: ReportFacts, document: JsonObject, document_sha256: str) -> str:
    """The whole document; the same facts give the same bytes."""
    title = "Differential privacy report"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title}: {facts.ledger.owner}"),
        tag("style", Html(STYLE)),
    )
    found = findings(facts)
    ledger = facts.ledger
    main = tag(
        "main",
        _header(title, facts),
        _summary(facts, found),
        parameters(ledger),
        budget(ledger),
        algorithms(facts),
        attack_section(facts.attack, ledger.spent or None, _delta(ledger)),
        trust(facts),
        exposure(ledger),
        _footer(facts, document_sha256),
    )
    body = tag("body", main, _data(document))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _delta(ledger: LedgerFacts) -> float:
    return ledger.limit.delta if isinstance(ledger.limit, Limit) else 0.0


def _header(title: str, facts: ReportFacts) -> Html:
    written = datetime.fromtimestamp(facts.written_unix_s, UTC)
    return tag(
        "header",
        tag("h1", title),
        tag(
            "p",
            f"Data owner {facts.ledger.owner}, data set ",
            code(facts.ledger.data_set[:16]),
            f". Written {written:%Y-%m-%d %H:%M} UTC.",
            class_="lead",
        ),
        tag(
            "p",
            "For the data owner and its data protection officer. The sampling rate and the attack's "
            "figures tell about the data beyond what ε covers: do not pass this report on unread.",
            class_="private",
        ),
    )


def _summary(facts: ReportFacts, found: tuple[Finding, ...]) -> Html:
    ledger, worst = facts.ledger, conclusion(found)
    limit = ledger.limit
    of = f" of {limit.epsilon:g}" if isinstance(limit, Limit) else ""
    verdict = "not done"
    if not isinstance(facts.attack, Missing):
        verdict = facts.attack.attack.judgement.verdict.value
    delta = small(limit.delta) if isinstance(limit, Limit) else "not set"
    return section(
        "summary",
        "At a glance",
        tag("p", badge(worst), f": {_SENTENCES[worst]}", class_="verdict"),
        tag(
            "div",
            tile(f"{ledger.spent:.2f}{of}", f"ε, privacy loss spent{never_ran_words(ledger)}"),
            tile(delta, "δ"),
            tile(f"one {ledger.unit.value}", "unit of privacy"),
            tile(assurance(ledger).value.replace("_", " "), "level of assurance"),
            tile(verdict, "attack on the adapter"),
            class_="tiles",
        ),
        tag("ul", *(_finding(finding) for finding in found), class_="findings"),
    )


def _finding(finding: Finding) -> Html:
    return tag("li", badge(finding.severity), tag("span", finding.subject), tag("p", finding.text))


def _footer(facts: ReportFacts, document_sha256: str) -> Html:
    return tag(
        "footer",
        tag(
            "p",
            f"Written by {facts.software}. Vocabulary: NIST SP 800-226, Guidelines for Evaluating "
            "Differential Privacy Guarantees.",
        ),
        tag("p", "SHA-256 of the JSON document: ", code(document_sha256)),
    )


def _data(document: JsonObject) -> Html:
    """JSON inside a page: nothing in it can end the element."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=True, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return tag("script", Html(text), type="application/json", id="document")
