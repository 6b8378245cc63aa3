"""How much a ledger's words are worth. Every report states the level of every campaign.

Signatures and trees show that an owner's machine said something and never said otherwise. Whether
it clipped, sampled and added noise is another question:

    declared          its machine says so
    tested_at_start   and its engine passed sensitivity, noise and sampler tests on the real model, before
                      the campaign's first step was claimed
    audited           and an empirical audit of sampler, noise and book-keeping, whose guesses were
                      committed to before the labels were opened, measured no more than is claimed.
                      It does not run the model: that each unit is clipped rests on the start-up proof

Two levels above these are not offered: attested hardware, and zero-knowledge proofs of training
(about 100 h for a small image model, Confidential-DPproof 2024).
"""

from enum import StrEnum

from offsite.secure.privacy.ledger.bodies import AuditKind
from offsite.secure.privacy.ledger.budget import Budget


class Assurance(StrEnum):
    """In rising order."""

    DECLARED = "declared"
    TESTED_AT_START = "tested_at_start"
    AUDITED = "audited"


def assurance_of(budget: Budget, campaign_id: str) -> Assurance:
    """The level of a campaign. An audit without a passed start-up proof raises nothing.

    A proof raises it only where it stands before the campaign's first claim; what ran untested is not made
    good by a test that followed. Of proofs and of empirical audits the last one counts: one that failed
    takes the level back.

    Guarantees: `test_a_proof_after_the_first_claim_raises_nothing`.
    """
    campaign = budget.campaigns.get(campaign_id)
    first_claim = None if campaign is None else campaign.first_claim
    proofs = budget.proofs.get(campaign_id, ())
    in_time = [proof for proof in proofs if first_claim is None or proof.seq < first_claim]
    if not in_time or not (in_time[-1].stated.passed and proofs[-1].stated.passed):
        return Assurance.DECLARED
    audits = campaign.audits if campaign is not None else ()
    empirical = [audit for audit in audits if audit.audit is AuditKind.EMPIRICAL]
    if empirical and empirical[-1].passed and empirical[-1].guesses in budget.guesses:
        return Assurance.AUDITED
    return Assurance.TESTED_AT_START
