"""The level of assurance rises with evidence, and falls with a failed audit."""

import pytest
from tests.secure.privacy.ledger.scenes import DIGEST, Book, campaign, reserved, started

from offsite.secure.privacy.ledger.assurance import Assurance, assurance_of
from offsite.secure.privacy.ledger.bodies import AuditGuesses, AuditKind, AuditResult, StartProof


def proven(*passed: bool) -> Book:
    """Proofs, and then steps."""
    book = started()
    book.write(reserved())
    for one in passed:
        book.write(StartProof("c1", DIGEST, one))
    book.run(0, 10)
    return book


def test_the_level_is_what_was_shown() -> None:
    book = proven(True)

    def level() -> Assurance:
        return assurance_of(book.ledger.budget, "c1")

    assert level() is Assurance.TESTED_AT_START
    guesses = book.write(AuditGuesses("c1", DIGEST)).entry.seq
    passed = AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True, guesses, 1.5, 0.95)
    book.write(passed)
    assert level() is Assurance.AUDITED
    book.write(AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, False, guesses, 9.0, 0.95))
    assert level() is Assurance.TESTED_AT_START
    book.write(AuditResult("c1", AuditKind.ATTACK, DIGEST, True))
    assert level() is Assurance.TESTED_AT_START
    book.write(StartProof("c1", DIGEST, False))
    assert level() is Assurance.DECLARED
    assert assurance_of(book.ledger.budget, "unknown") is Assurance.DECLARED


def test_an_audit_of_an_engine_that_was_never_tested_raises_nothing() -> None:
    book = campaign()
    guesses = book.write(AuditGuesses("c1", DIGEST)).entry.seq
    book.write(AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True, guesses, 1.5, 0.95))
    assert assurance_of(book.ledger.budget, "c1") is Assurance.DECLARED


def test_a_proof_after_the_first_claim_raises_nothing() -> None:
    """What ran untested is not made good by a test that followed."""
    book = campaign()
    book.write(StartProof("c1", DIGEST, True))
    assert assurance_of(book.ledger.budget, "c1") is Assurance.DECLARED


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        ((False, True), (), Assurance.TESTED_AT_START),
        ((True,), (True,), Assurance.TESTED_AT_START),  # another session
        ((True,), (False,), Assurance.DECLARED),
        ((True,), (False, True), Assurance.TESTED_AT_START),
    ],
)
def test_the_last_proof_in_time_and_the_last_of_all_have_passed(
    before: tuple[bool, ...], after: tuple[bool, ...], level: Assurance
) -> None:
    book = proven(*before)
    for one in after:
        book.write(StartProof("c1", DIGEST, one))
    assert assurance_of(book.ledger.budget, "c1") is level
