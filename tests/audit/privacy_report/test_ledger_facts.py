"""Facts from a real ledger, with an accountant that can be done by hand."""

from collections.abc import Sequence

import pytest
from tests.secure.privacy.ledger.scenes import (
    COORDINATOR,
    DIGEST,
    OWNER,
    SET_A,
    SET_B,
    SET_C,
    Book,
    Simple,
    campaign,
    claimed,
    data_set,
    released,
    reserved,
    started,
    steps,
)

from offsite.audit.keys import LedgerKeys
from offsite.audit.privacy_report.facts import EventKind, LedgerFacts, Limit, Missing, ProofEntry
from offsite.audit.privacy_report.ledger_facts import MOST_POINTS, ledger_facts
from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting.view import EpsilonView
from offsite.secure.privacy.ledger.assurance import Assurance
from offsite.secure.privacy.ledger.bodies import (
    Aborted,
    Adaptivity,
    AuditKind,
    AuditResult,
    Charged,
    Closed,
    LimitSet,
    Refused,
    StartProof,
)
from offsite.secure.privacy.ledger.verification import verify_ledger
from offsite.secure.privacy.mechanisms import Mechanism


def view(mechanisms: Sequence[Mechanism], delta: float) -> EpsilonView:
    uses = float(sum(item.uses for item in mechanisms))
    return EpsilonView(delta, uses, uses, uses, None, 1e-4, ())


KEYS = LedgerKeys(OWNER.public, is_stated=True)


def facts(book: Book, of: bytes = SET_A) -> LedgerFacts:
    return ledger_facts(verify_ledger(book.data, OWNER.public), of, KEYS, Simple(), view)


def test_a_ledger_is_told_as_it_is() -> None:
    book = campaign(blocks=3)
    found = facts(book)
    assert found.owner == "edge-1" and found.data_set == SET_A.hex()
    assert found.limit == Limit(1000.0, 1e-5)
    assert (found.spent, found.exposed) == (30.0, 100.0)
    (only,) = found.campaigns
    assert (only.reserved, only.spent, only.charged, only.epsilon) == (100, 30, 0, 30.0)
    assert only.is_open and only.assurance is Assurance.DECLARED
    assert [event.epsilon for event in found.events] == [10.0, 20.0, 30.0]
    assert found.events[0].what == "c1, round 0: 10 steps"
    assert found.entries == book.ledger.size and not found.faults
    assert found.root == book.ledger.head().root.hex()
    assert isinstance(found.cross_check, EpsilonView) and found.cross_check.pld == 30.0


def test_everything_that_happened_is_an_event() -> None:
    book = campaign(blocks=1)
    book.write(StartProof("c1", DIGEST, True))
    claim = book.write(claimed(10, 10))
    book.write(Charged(claim.entry.seq, 10, "the outcome is unknown after a restart"))
    book.write(Aborted("c1", 1, 0, "nobody answered"))
    book.write(Refused("c2", SET_A, steps(9000), 870, "it exceeds the limit"))
    book.write(released(adaptivity=Adaptivity.FILTER))
    found = facts(book)
    kinds = [event.kind for event in found.events]
    assert kinds == [
        EventKind.CLAIMED,
        EventKind.CLAIMED,
        EventKind.ABORTED,
        EventKind.REFUSED,
        EventKind.RELEASED_OTHER,
    ]
    assert found.events[3].what == "c2: 870 of 9000 steps would have fitted"
    assert found.other_releases == ("rows",)
    assert found.campaigns[0].charged == 10
    assert found.campaigns[0].assurance is Assurance.DECLARED  # tested too late
    assert found.proofs == (ProofEntry(6, "c1", DIGEST.hex(), True, False),)
    assert found.evidence == {DIGEST.hex()}
    assert found.spent == 42.0  # from now on by the filter


def test_a_campaign_that_ended_early_counts_as_planned_while_sums_are_exact() -> None:
    book = campaign(blocks=3)
    book.write(Closed("c1", 70))
    found = facts(book)
    assert (found.spent, found.never_ran, found.exposed) == (100.0, 70, 100.0)
    (only,) = found.campaigns
    assert (only.spent, only.never_ran, only.epsilon) == (30, 70, 100.0)
    assert found.events[-1].kind is EventKind.CLOSED and found.events[-1].epsilon == 100.0
    assert isinstance(found.cross_check, EpsilonView) and found.cross_check.pld == 100.0
    book.write(reserved("c2", mechanism=steps(10), adaptivity=Adaptivity.FILTER))
    assert facts(book).never_ran == 0 and facts(book).spent == 60.0  # a filter allows for that


def test_what_concerns_other_records_is_not_told() -> None:
    book = campaign(blocks=1)
    book.write(data_set(SET_C))
    book.write(StartProof("c1", DIGEST, False))
    book.write(LimitSet(500.0, 1e-5))
    book.write(LimitSet(3.0, 1e-5, data_set=SET_C))
    book.write(AuditResult("c1", AuditKind.ATTACK, b"\xe1" * 32, False))
    found = facts(book)
    assert [proof.passed for proof in found.proofs] == [False]
    assert [(audit.seq, audit.kind) for audit in found.audits] == [(10, AuditKind.ATTACK)]
    assert found.evidence == {DIGEST.hex(), "e1" * 32}
    assert [change.limit.epsilon for change in found.limit_changes] == [1000.0, 500.0]
    other = facts(book, SET_C)
    assert not other.proofs and not other.audits and not other.evidence
    assert [change.limit.epsilon for change in other.limit_changes] == [1000.0, 500.0, 3.0]


def test_what_was_not_checked_is_not_counted() -> None:
    findings = verify_ledger(campaign().data, OWNER.public)
    found = ledger_facts(findings, SET_A, LedgerKeys(OWNER.public, False), Simple(), view)
    assert isinstance(found.countersigned, Missing) and not found.owner_key_is_stated
    keys = LedgerKeys(OWNER.public, True, COORDINATOR.public)
    assert ledger_facts(findings, SET_A, keys, Simple(), view).countersigned == 0


def test_a_set_that_shares_records_bears_what_was_spent_on_the_other() -> None:
    book = campaign(blocks=2)
    book.write(data_set(SET_B, SET_A))
    book.write(data_set(SET_C))
    assert facts(book, SET_B).spent == 20.0
    assert facts(book, SET_B).campaigns[0].campaign_id == "c1"
    untouched = facts(book, SET_C)
    assert untouched.spent == 0.0 and not untouched.campaigns and not untouched.events
    assert isinstance(untouched.cross_check, Missing)


def test_what_was_chosen_along_the_way_has_no_cross_check() -> None:
    book = started()
    book.write(reserved(adaptivity=Adaptivity.FILTER))
    book.run(0, 10)
    found = facts(book)
    assert found.adaptivity is Adaptivity.FILTER and found.spent == 20.0
    assert isinstance(found.cross_check, Missing) and "Rényi" in found.cross_check.reason


def test_a_long_course_is_thinned_out_and_keeps_its_end() -> None:
    book = started()
    book.write(reserved())
    for step in range(95):
        book.run(step, 1)
    found = facts(book)
    assert len(found.events) <= MOST_POINTS + 1
    assert found.events[-1].epsilon == found.spent == 95.0


def test_faults_are_named_where_they_are() -> None:
    book = campaign()
    book.records.pop(4)
    found = facts(book)
    assert any(fault.startswith("removed: entry 4") for fault in found.faults)


def test_a_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a data set of the ledger, found 4343"):
        facts(campaign(), SET_C)


def test_an_epsilon_beyond_any_use_is_not_reported() -> None:
    class Beyond(Simple):
        def epsilon(self, mechanisms: Sequence[Mechanism], terms: object) -> float:
            return float("inf")

    findings = verify_ledger(campaign().data, OWNER.public)
    with pytest.raises(PolicyError, match="no figure to report"):
        ledger_facts(findings, SET_A, KEYS, Beyond(), view)


def test_the_accountants_of_record_are_asked_by_default() -> None:
    found = ledger_facts(verify_ledger(campaign(1).data, OWNER.public), SET_A, KEYS)
    assert isinstance(found.cross_check, EpsilonView)
    assert found.spent == found.cross_check.pld > 0
    assert abs(found.cross_check.prv - found.spent) <= 0.02
