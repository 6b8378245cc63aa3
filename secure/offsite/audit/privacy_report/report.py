"""A report as two files: `privacy-report.html` for people, `privacy-report.json` for programs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from offsite.audit.privacy_report.document import document
from offsite.audit.privacy_report.facts import ReportFacts
from offsite.audit.privacy_report.findings import Severity, conclusion, findings
from offsite.audit.privacy_report.page import page
from offsite.emulator.durable import write_atomic
from offsite.emulator.strict_json import canonical_json

PAGE: Final = "privacy-report.html"
DOCUMENT: Final = "privacy-report.json"


@dataclass(frozen=True, slots=True)
class Report:
    """Both forms of a report, and its conclusion for the exit code."""

    html: str
    json: bytes
    conclusion: Severity


def build_report(facts: ReportFacts) -> Report:
    """Both forms, from the same facts."""
    contents = document(facts)
    data = canonical_json(contents)
    html = page(facts, contents, hashlib.sha256(data).hexdigest())
    return Report(html, data, conclusion(findings(facts)))


def write_report(folder: Path, facts: ReportFacts) -> Report:
    """Writes both files into a folder that is there, readable by this user alone."""
    report = build_report(facts)
    write_atomic(folder / DOCUMENT, report.json)
    write_atomic(folder / PAGE, report.html.encode())
    return report
