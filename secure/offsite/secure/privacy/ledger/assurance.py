"""How much a ledger's words are worth. Every report states the level of every campaign.

Signatures and trees show that an owner's machine said something and never said otherwise. Whether
it clipped, sampled and added noise is another question:

    declared          its machine says so
    tested_at_start   and its engine passed sensitivity, noise and sampler tests on the real model
    audited           and an empirical audit, whose guesses were committed to before the labels were
                      opened, measured no more than is claimed

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

    The last empirical audit counts: one that failed takes the level back.
    """
    proof = budget.proofs.get(campaign_id)
    if proof is None or not proof.passed:
        return Assurance.DECLARED
    campaign = budget.campaigns.get(campaign_id)
    audits = campaign.audits if campaign is not None else ()
    empirical = [audit for audit in audits if audit.audit is AuditKind.EMPIRICAL]
    if empirical and empirical[-1].passed and empirical[-1].guesses in budget.guesses:
        return Assurance.AUDITED
    return Assurance.TESTED_AT_START
