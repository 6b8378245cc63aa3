"""An audit as a table for a person."""

from rich.table import Table

from offsite.audit.log import LogPlace
from offsite.audit.round import Audit
from offsite.emulator.printable import printable
from offsite.secure.aggregation.evidence import words_sha256


def render(audit: Audit) -> Table:
    """What was verified, from whom to what."""
    terms, found = audit.terms, audit.verified
    table = Table(title="The published sum is the one that these clients made", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # digests are compared: none of one may be left out
    dropped = ", ".join(found.dropped) or "nobody"
    rows = {
        "round": f"campaign {terms.campaign_id}, attempt {terms.attempt}, cohort {terms.cohort}",
        "terms": terms.digest.hex(),
        "authority": f"{audit.authority.short}, directory version {terms.directory_version}",
        "coordinator": audit.coordinator.short,
        "in the sum": f"{len(found.survivors)}: {', '.join(found.survivors)}",
        "dropped out": dropped,
        "signatures": f"{audit.signatures} verified",
        "sum": f"{terms.values} values, weight {audit.total_weight:g}",
        "SHA-256 of the sum": words_sha256(found.total).hex(),
        "transcript": found.result.transcript_root.hex(),
    }
    rows["log"] = _log_row(audit.log)
    if audit.unused:
        rows["came too late"] = ", ".join(audit.unused)
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table


def _log_row(place: LogPlace | None) -> str:
    if place is None:
        return "not given: whether this result was published to others is not known"
    text = f"result {place.position + 1} of {place.head.size}, root {place.head.root.hex()}"
    if place.continues is None:
        return f"{text}; no head that was kept earlier was given to compare with"
    return f"{text}; continues the head of {place.continues.size} that was kept"
