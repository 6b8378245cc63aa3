"""An audit as a table for a person."""

from rich.table import Table

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
    if audit.unused:
        rows["came too late"] = ", ".join(audit.unused)
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table
