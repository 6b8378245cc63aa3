"""Which entry may follow: each broken rule is refused by the edge and named by an auditor."""

import pytest
from tests.secure.privacy.ledger.scenes import (
    DIGEST,
    NOW_UNIX_S,
    OWNER,
    SET_A,
    SET_B,
    STRANGER,
    Book,
    Simple,
    campaign,
    claimed,
    data_set,
    implementation,
    opened,
    released,
    reserved,
    started,
    steps,
)

from offsite.secure.errors import PolicyError
from offsite.secure.privacy.ledger import bodies
from offsite.secure.privacy.ledger.admission import Use
from offsite.secure.privacy.ledger.bodies import (
    Aborted,
    Adaptivity,
    AuditGuesses,
    AuditKind,
    AuditResult,
    Body,
    Charged,
    Closed,
    Committed,
    LimitSet,
    Refused,
    Sampler,
    StartProof,
)
from offsite.secure.privacy.ledger.chain import Record, Tip, next_record
from offsite.secure.privacy.ledger.faults import FaultKind
from offsite.secure.privacy.ledger.verification import verify_ledger
from offsite.secure.privacy.mechanisms import TruncatedPoissonGaussian
from offsite.secure.privacy.units import Unit

K = FaultKind
FILTER = Adaptivity.FILTER
FAILED = StartProof("c1", DIGEST, False)
PASSED = StartProof("c1", DIGEST, True)
TRUNCATED = TruncatedPoissonGaussian(1.0, steps(1).sampling, 10, 1000, 20, Unit.RECORD)


def book_of(*written: Body) -> Book:
    """A campaign after one block (entries 4 and 5 are its claim and commit), then these."""
    book = campaign(1)
    for body in written:
        book.write(body)
    return book


# What went before, what breaks a rule, how it is called, and a part of what is said.
BROKEN: list[tuple[tuple[Body, ...], Body, FaultKind, str]] = [
    ((), opened(), K.INCONSISTENT, "only once"),
    ((), LimitSet(8.0, 1e-5, data_set=SET_B), K.UNKNOWN, "not in the ledger"),
    ((), data_set(SET_A), K.INCONSISTENT, "already"),
    ((), data_set(SET_B, bytes(32)), K.UNKNOWN, "overlaps 0000000000000000"),
    ((), data_set(SET_B, SET_B), K.UNKNOWN, "no data set before it"),
    ((), reserved(adaptivity=FILTER), K.DOUBLE_SPENDING, "a reservation already"),
    ((), reserved("c2", SET_B), K.UNKNOWN, "not in the ledger"),
    ((), reserved("c2", SET_A, TRUNCATED, FILTER), K.INCONSISTENT, "does not do what"),
    ((), reserved("c2", SET_A, steps(1, unit=Unit.PERSON), FILTER), K.INCONSISTENT, "by record"),
    ((), reserved("c2"), K.INCONSISTENT, "planned in advance"),
    ((), released(), K.INCONSISTENT, "planned in advance"),
    ((), claimed(10, 5, "c2"), K.UNKNOWN, "no reservation"),
    ((), claimed(11, 5), K.GAP, "no claim covers steps 10 to 10"),
    ((), claimed(9, 5), K.DOUBLE_SPENDING, "steps 9 to 9 were claimed before"),
    ((), claimed(0, 2), K.DOUBLE_SPENDING, "steps 0 to 1 were claimed before"),
    ((), claimed(10, 91), K.OVERDRAWN, "up to step 101 of 100"),
    ((claimed(10, 5),), claimed(15, 5), K.INCONSISTENT, "neither committed nor charged"),
    ((FAILED,), claimed(10, 5), K.UNPROVEN, "start-up proof"),
    ((PASSED, FAILED), claimed(10, 5), K.UNPROVEN, "start-up proof"),
    ((Closed("c1", 90),), claimed(10, 5), K.DOUBLE_SPENDING, "its steps were given back"),
    ((claimed(10, 5), Committed(6, 3, DIGEST)), claimed(13, 5), K.REFUND, "steps 13 to 14 were"),
    ((), Committed(3, 1, DIGEST), K.UNKNOWN, "no claim"),
    ((), Committed(4, 10, DIGEST), K.DOUBLE_SPENDING, "committed before"),
    ((claimed(10, 5),), Committed(6, 6, DIGEST), K.OVERDRAWN, "6 steps ran, 5 were claimed"),
    (
        (claimed(10, 5), Charged(6, 5, "crash")),
        Committed(6, 5, DIGEST),
        K.DOUBLE_SPENDING,
        "charged before",
    ),
    ((), Charged(3, 1, "crash"), K.UNKNOWN, "no claim"),
    ((), Charged(4, 10, "crash"), K.INCONSISTENT, "committed before"),
    ((claimed(10, 5),), Charged(6, 4, "crash"), K.REFUND, "charges 4 of 5"),
    ((claimed(10, 5),), Charged(6, 6, "crash"), K.INCONSISTENT, "charges 6 of 5"),
    ((), Closed("c2", 0), K.UNKNOWN, "no reservation"),
    ((), Closed("c1", 91), K.REFUND, "gives back 91 steps, 90 were never claimed"),
    ((), Closed("c1", 89), K.INCONSISTENT, "gives back 89"),
    ((Closed("c1", 90),), Closed("c1", 0), K.INCONSISTENT, "closed already"),
    ((claimed(10, 5),), Closed("c1", 85), K.INCONSISTENT, "neither committed nor charged"),
    ((), Refused("c2", SET_B, steps(9), 0, "limit"), K.UNKNOWN, "not in the ledger"),
    ((), Aborted("c2", 0, 0, "late"), K.UNKNOWN, "no reservation"),
    ((), AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True), K.UNKNOWN, "after the labels"),
    ((), AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True, 5), K.UNKNOWN, "after the labels"),
    (
        (AuditGuesses("c2", DIGEST),),
        AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True, 6),
        K.UNKNOWN,
        "after the labels",
    ),
    ((), AuditResult("c2", AuditKind.ATTACK, DIGEST, True), K.UNKNOWN, "no reservation"),
]


@pytest.mark.parametrize(("before", "body", "kind", "says"), BROKEN)
def test_what_breaks_a_rule_is_not_written(
    before: tuple[Body, ...], body: Body, kind: FaultKind, says: str
) -> None:
    book = book_of(*before)
    size, head = book.ledger.size, book.ledger.head()
    with pytest.raises(PolicyError, match=says):
        book.write(body)
    assert (book.ledger.size, book.ledger.head()) == (size, head)


@pytest.mark.parametrize(("before", "body", "kind", "says"), BROKEN)
def test_what_breaks_a_rule_is_named_by_an_auditor(
    before: tuple[Body, ...], body: Body, kind: FaultKind, says: str
) -> None:
    """An owner's machine that writes it all the same, with its own key."""
    book = book_of(*before)
    forced = forced_record(book, body)
    findings = verify_ledger(book.data + forced.to_line(), OWNER.public)
    assert [(fault.kind, fault.first) for fault in findings.faults] == [(kind, forced.entry.seq)]
    assert says in findings.faults[0].problem


def forced_record(book: Book, body: Body) -> Record:
    return next_record(Tip.after(book.records[-1]), body, OWNER, NOW_UNIX_S + 1e6, bytes(16))


def test_what_breaks_no_rule_is_written() -> None:
    book = book_of(
        PASSED,
        claimed(10, 5),
        Charged(7, 5, "crash"),
        claimed(15, 5),
        Aborted("c1", 2, 0, "late"),
        Committed(9, 2, DIGEST),
        LimitSet(500.0, 1e-5, data_set=SET_A),
        AuditGuesses("c1", DIGEST),
        AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True, 13, 1.5, 0.95),
        AuditResult("c1", AuditKind.ATTACK, DIGEST, False),
        Closed("c1", 80),
        reserved("c2", mechanism=steps(5), adaptivity=FILTER),
        Refused("c3", SET_A, steps(10**6), 12, "it exceeds the limit"),
        data_set(SET_B, SET_A),
        released(SET_B, adaptivity=FILTER),
    )
    assert verify_ledger(book.data, OWNER.public, accounting=Simple()).faults == ()


def test_campaigns_may_be_planned_in_advance_until_something_was_released() -> None:
    book = started()
    book.write(data_set(SET_B, SET_A))
    book.write(data_set(bytes(32)))
    book.write(reserved("c1"))
    book.write(reserved("c2", SET_B))
    book.write(claimed(0, 1, "c2"))
    book.write(reserved("c3", bytes(32)))
    for number, overlapping in enumerate((SET_A, SET_B)):
        with pytest.raises(PolicyError, match="planned in advance"):
            book.write(reserved(f"late-{number}", overlapping))
        book.write(reserved(f"late-{number}", overlapping, adaptivity=FILTER))


def test_accounts_of_records_and_of_persons_do_not_mix() -> None:
    book = started()
    book.write(data_set(SET_B, SET_A, unit=Unit.PERSON))
    uses: list[Use] = [
        reserved(),
        reserved("c2", SET_B, steps(1, unit=Unit.PERSON)),
        released(SET_A),
    ]
    for use in uses:
        with pytest.raises(PolicyError, match="says nothing about the other"):
            book.write(use)


def test_a_ledger_begins_with_its_opening_by_its_own_key() -> None:
    with pytest.raises(PolicyError, match="opened by its first entry"):
        Book().write(LimitSet(8.0, 1e-5))
    book = Book()
    with pytest.raises(PolicyError, match="key that the ledger was opened with"):
        book.ledger.append(opened(), STRANGER, NOW_UNIX_S, bytes(16))
    book.write(opened())
    with pytest.raises(PolicyError, match="key that the ledger was opened with"):
        book.ledger.append(LimitSet(8.0, 1e-5), STRANGER, NOW_UNIX_S, bytes(16))


def test_a_use_of_data_cannot_be_appended_without_admission() -> None:
    book = started()
    for use in (reserved(), released()):
        with pytest.raises(PolicyError, match="to be admitted"):
            book.ledger.append(use, OWNER, NOW_UNIX_S, bytes(16))


def test_time_stands_still_for_a_clock_that_went_back() -> None:
    book = started()
    record = book.write(reserved(), now_unix_s=5.0)
    assert record.entry.time_unix_s == NOW_UNIX_S + 2
    assert verify_ledger(book.data, OWNER.public).faults == ()


def test_time_that_runs_backwards_is_named() -> None:
    book = started()
    tip = Tip(book.ledger.size, book.records[-1].digest, 0.0)
    record = next_record(tip, data_set(SET_B), OWNER, 5.0, bytes(16))
    faults = verify_ledger(book.data + record.to_line(), OWNER.public).faults
    assert [(fault.kind, fault.first) for fault in faults] == [(K.INCONSISTENT, 3)]
    assert "its time is before" in faults[0].problem


def test_every_sampler_has_its_mechanism() -> None:
    for mechanism, sampler in ((steps(1), Sampler.POISSON), (TRUNCATED, Sampler.TRUNCATED_POISSON)):
        book = started()
        book.write(
            bodies.Reserved(
                "c1", SET_A, mechanism, Adaptivity.PREREGISTERED, 1.0, 8.0, implementation(sampler)
            )
        )
