"""Results of the other audits as facts of a report."""

from offsite.audit.attack.analysis import Attack
from offsite.audit.attack.evidence import sha256
from offsite.audit.empirical.judgement import EmpiricalAudit
from offsite.audit.privacy_report.facts import (
    AttackFacts,
    EmpiricalFacts,
    LowerBound,
)


def attack_facts(attack: Attack, evidence: bytes) -> AttackFacts:
    """Of an attack and the evidence that `to_bytes` made of it."""
    return AttackFacts(attack, sha256(evidence))


def empirical_facts(audit: EmpiricalAudit) -> EmpiricalFacts:
    """Of an empirical audit: its bounds, each beside what is claimed of the same runs."""
    bounds = list[LowerBound]()
    for reading, found in audit.crowd.items():
        name = reading.value.replace("_", " ")
        claimed = audit.claimed_epsilon
        bounds += [
            LowerBound(f"one run, {name}", found.one_run_epsilon, claimed),
            LowerBound(f"one run, f-DP, {name}", found.f_dp_epsilon, claimed),
        ]
    duel, claimed = audit.duel, audit.duel_claimed_epsilon
    bounds += [
        LowerBound("many runs", duel.clopper_pearson_epsilon, claimed),
        LowerBound("many runs, Gaussian", duel.gaussian_epsilon, claimed),
    ]
    plan = audit.plan
    return EmpiricalFacts(
        1 - plan.significance,
        plan.delta,
        plan.canaries,
        audit.is_refuted,
        tuple(bounds),
        audit.receipts,
    )
