"""The report as JSON: the same facts and findings as the page, for programs."""

from dataclasses import fields, is_dataclass

from offsite.audit.attack.evidence import result_json
from offsite.audit.privacy_report.facts import AttackFacts, Missing, ReportFacts
from offsite.audit.privacy_report.findings import assurance, conclusion, findings
from offsite.emulator.strict_json import JsonObject, JsonValue

FORMAT = "offsite/privacy-report/1"


def document(facts: ReportFacts) -> JsonObject:
    """Everything that the page shows; what was not done is `{"missing": reason}`."""
    found = findings(facts)
    return {
        "format": FORMAT,
        "written_unix_s": facts.written_unix_s,
        "software": facts.software,
        "conclusion": conclusion(found).value,
        "assurance": assurance(facts.ledger).value,
        "findings": [_plain(finding) for finding in found],
        "ledger": _plain(facts.ledger),
        "proof": _plain(facts.proof),
        "empirical": _plain(facts.empirical),
        "attack": _attack(facts.attack),
    }


def _attack(found: AttackFacts | Missing) -> JsonValue:
    if isinstance(found, Missing):
        return _plain(found)
    settings = found.attack.settings.to_json()
    return {
        **result_json(found.attack),
        "settings": settings,
        "evidence_sha256": found.evidence_sha256,
    }


def _plain(value: object) -> JsonValue:
    """A fact as JSON: dataclasses by their fields, mechanisms in their own exact form."""
    if isinstance(value, Missing):
        return {"missing": value.reason}
    to_json = getattr(value, "to_json", None)
    if callable(to_json):
        return dict(to_json())
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)
