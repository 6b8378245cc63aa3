"""Whether an empirical audit's guesses stand in a ledger, committed to before its result was known."""

from dataclasses import replace

from offsite.audit.empirical.evidence import Evidence
from offsite.audit.empirical.judgement import check_commitments
from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.bodies import AuditGuesses, AuditResult
from offsite.secure.privacy.ledger.verification import Findings


def check_committed(
    evidence: Evidence, findings: Findings, family: frozenset[bytes] | None = None
) -> None:
    """That the ledger has the opening, then the guesses, then the result with this evidence, and that
    what was audited is what the campaign reserved.

    Args:
        family: data sets that the campaign may be of; None: any.

    Raises:
        IntegrityError: it does not; guesses may have been made after the labels were seen.
    """
    digest = evidence.sha256
    entries = {record.entry.seq: record.entry.body for record in findings.records}
    for body in entries.values():
        if not isinstance(body, AuditResult) or body.evidence != digest or body.guesses is None:
            continue
        guesses = entries.get(body.guesses)
        earlier = [
            other
            for seq, other in entries.items()
            if isinstance(other, AuditGuesses) and seq < body.guesses
        ]
        if isinstance(guesses, AuditGuesses) and earlier:
            check_commitments(evidence, earlier[-1].commitment, guesses.commitment)
            _check_terms(evidence, findings, body.campaign_id, family)
            return
    raise IntegrityError(
        "expected a ledger with the result of this very evidence, and its guesses before it, found "
        "none: guesses may have been made after the labels were seen"
    )


def _check_terms(
    evidence: Evidence, findings: Findings, campaign_id: str, family: frozenset[bytes] | None
) -> None:
    """Evidence about other data, noise, another rate or number of steps says nothing here."""
    campaign = findings.budget.campaigns.get(campaign_id)
    audited = evidence.opening.plan.terms.mechanism
    if campaign is None or replace(campaign.reserved.mechanism, unit=audited.unit) != audited:
        raise IntegrityError(
            f"expected an audit of the terms that campaign {campaign_id} reserved, found one of others"
        )
    if family is not None and campaign.reserved.data_set not in family:
        raise IntegrityError(
            f"expected an audit of a campaign on this data set, found one of {campaign_id} on others"
        )
