"""Facts of made-up reports: one in order, one where everything that can be wrong is."""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from offsite.audit.attack.analysis import Measured, analyse
from offsite.audit.attack.evidence import to_bytes
from offsite.audit.attack.losses import Losses, Pair
from offsite.audit.attack.settings import AttackSettings
from offsite.audit.privacy_report.audit_facts import attack_facts
from offsite.audit.privacy_report.facts import (
    AttackFacts,
    AuditEntry,
    CampaignFacts,
    EmpiricalFacts,
    Event,
    EventKind,
    LedgerFacts,
    Limit,
    LimitChange,
    LowerBound,
    Missing,
    ProofCheck,
    ProofEntry,
    ProofFacts,
    ReportFacts,
)
from offsite.secure.privacy.accounting.view import EpsilonView
from offsite.secure.privacy.ledger.assurance import Assurance
from offsite.secure.privacy.ledger.bodies import Adaptivity, AuditKind
from offsite.secure.privacy.mechanisms import PoissonGaussian
from offsite.secure.privacy.units import Adjacency, Unit

HOSTILE = "clinic <script>alert('1')</script> & \"sons\" \u202e\x1b[2J"
MECHANISM = PoissonGaussian(0.8134765625, Fraction(16, 2251), 240, Unit.PERSON)
STARTED_S = 1_790_000_000.0


def losses(random: np.random.Generator, rows: int, gain: float) -> Pair:
    tokens = random.integers(4, 40, rows).astype(float)
    before = random.normal(3, 0.6, rows)
    after = before - gain - 0.2 + random.normal(0, 0.15, rows)
    return Pair(Losses(before * tokens, tokens), Losses(after * tokens, tokens))


def attack(gain: float, rows: int = 1200, secrets: int = 12) -> AttackFacts:
    """Of an adapter that gained so much more on rows that it was tuned on, in nats per token."""
    random = np.random.default_rng(3)
    planted = []
    for _ in range(secrets):
        pair = losses(random, 256, 0.0)
        pair.after.nats[0] -= gain * pair.after.tokens[0]
        planted.append(pair)
    measured = Measured(
        losses(random, rows, gain), losses(random, rows, 0.0), tuple(planted), "aa" * 32, "bb" * 32
    )
    found = analyse(measured, AttackSettings(resamples=199), bytes(32))
    return attack_facts(found, to_bytes(found))


def ledger() -> LedgerFacts:
    rounds = range(1, 11)
    events = [
        Event(
            3 + 2 * r,
            STARTED_S + 900 * r,
            EventKind.CLAIMED,
            f"campaign 7, round {r}: 24 steps",
            1.1 + 0.33 * r,
        )
        for r in rounds
    ]
    refused = Event(
        26,
        STARTED_S + 86_400,
        EventKind.REFUSED,
        "campaign 8: 311 of 400 steps would have fitted",
        4.4,
    )
    return LedgerFacts(
        owner="clinic-north",
        owner_key="0e" * 32,
        owner_key_is_stated=True,
        data_set="5e" * 32,
        unit=Unit.PERSON,
        adjacency=Adjacency.ZERO_OUT,
        limit=Limit(8.0, 1e-5, 6.0),
        limit_changes=(LimitChange(1, Limit(8.0, 1e-5, 6.0)),),
        adaptivity=Adaptivity.PREREGISTERED,
        spent=4.4,
        never_ran=0,
        exposed=5.1,
        cross_check=EpsilonView(
            1e-5,
            4.4,
            4.41,
            5.02,
            None,
            1e-4,
            (("dp-accounting", "0.6.0"), ("prv-accountant", "0.2.0")),
        ),
        campaigns=(
            CampaignFacts("7", MECHANISM, 1.0, 300, 240, 24, 0, True, 4.4, Assurance.AUDITED),
        ),
        events=(*events, refused),
        other_releases=("accuracy on 200 held-out rows",),
        proofs=(ProofEntry(4, "7", "d1" * 32, True, True),),
        audits=(AuditEntry(23, "7", AuditKind.EMPIRICAL, "e1" * 32, True, 3.4),),
        entries=28,
        countersigned=28,
        root="c0" * 32,
        faults=(),
    )


def naming(facts: LedgerFacts, found: AttackFacts) -> LedgerFacts:
    """The ledger with an entry for an attack."""
    entry = AuditEntry(27, "7", AuditKind.ATTACK, found.evidence_sha256, True, None)
    return replace(facts, audits=(*facts.audits, entry))


def good() -> ReportFacts:
    found = attack(0.0)
    batches = "a gradient that is clipped wrongly"
    checks = (
        ProofCheck("sensitivity, random batches", batches, "at most 1.0001", "1.00000", 0.0, True),
        ProofCheck("sensitivity, ragged batches", batches, "at most 1.0001", "1.00000", 0.0, True),
        ProofCheck("noise variance", "half the noise", "0.98 to 1.02", "0.9991", 1e-9, True),
        ProofCheck("inclusions", "another rate", "31 to 92", "58", 0.014, True),
    )
    bounds = (
        LowerBound("one run, final adapter", 1.21, 4.4),
        LowerBound("one run, f-DP, final adapter", 2.34, 4.4),
        LowerBound("many runs", 1.9, 4.1),
        LowerBound("many runs, Gaussian", 3.4, 4.1),
    )
    return ReportFacts(
        STARTED_S + 90_000,
        "offsite 0.1.0",
        naming(ledger(), found),
        ProofFacts("d1" * 32, checks),
        EmpiricalFacts(0.95, 1e-5, 1000, False, bounds, ("ledger entry 21", "ledger entry 23")),
        found,
    )


def bad() -> ReportFacts:
    facts = good()
    assert isinstance(facts.proof, ProofFacts) and isinstance(facts.empirical, EmpiricalFacts)
    first, *rest = facts.proof.checks
    failed = replace(first, found="4.16000", passed=False)
    bounds = (replace(facts.empirical.bounds[0], epsilon=6.3), *facts.empirical.bounds[1:])
    return ReportFacts(
        facts.written_unix_s,
        facts.software,
        replace(
            facts.ledger,
            owner=HOSTILE,
            unit=Unit.RECORD,
            exposed=9.2,
            countersigned=12,
            campaigns=(replace(facts.ledger.campaigns[0], assurance=Assurance.DECLARED),),
            faults=(f"forked: entry 3: {HOSTILE}", "refund: entry 9: 24 steps were given back"),
        ),
        replace(facts.proof, checks=(failed, *rest)),
        replace(facts.empirical, is_refuted=True, bounds=bounds),
        attack(0.4),
    )


def bare() -> ReportFacts:
    """Of an owner who set no limit and did nothing yet."""
    unset = Missing("no limit was set: nothing bounds what may be spent")
    not_asked = Missing("nobody asked for it")
    empty = replace(
        ledger(),
        limit=unset,
        spent=0.0,
        exposed=0.0,
        cross_check=Missing("nothing was spent yet"),
        campaigns=(),
        events=(),
        other_releases=(),
        entries=2,
        countersigned=0,
    )
    return ReportFacts(STARTED_S, "offsite 0.1.0", empty, not_asked, not_asked, not_asked)
