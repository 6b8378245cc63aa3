"""The level of assurance rises with evidence, and falls with a failed audit."""

from tests.secure.privacy.ledger.scenes import DIGEST, campaign

from offsite.secure.privacy.ledger.assurance import Assurance, assurance_of
from offsite.secure.privacy.ledger.bodies import AuditGuesses, AuditKind, AuditResult, StartProof


def test_the_level_is_what_was_shown() -> None:
    book = campaign()

    def level() -> Assurance:
        return assurance_of(book.ledger.budget, "c1")

    assert level() is Assurance.DECLARED
    guesses = book.write(AuditGuesses("c1", DIGEST)).entry.seq
    passed = AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True, guesses, 1.5, 0.95)
    book.write(passed)
    assert level() is Assurance.DECLARED  # an audit of an engine that was never tested
    book.write(StartProof("c1", DIGEST, True))
    assert level() is Assurance.AUDITED
    book.write(AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, False, guesses, 9.0, 0.95))
    assert level() is Assurance.TESTED_AT_START
    book.write(AuditResult("c1", AuditKind.ATTACK, DIGEST, True))
    assert level() is Assurance.TESTED_AT_START
    book.write(StartProof("c1", DIGEST, False))
    assert level() is Assurance.DECLARED
    assert assurance_of(book.ledger.budget, "unknown") is Assurance.DECLARED
