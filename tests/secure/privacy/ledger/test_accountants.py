"""The accountants of record, asked by a ledger: few, since each takes its time."""

import math

import pytest
from tests.secure.privacy.ledger.scenes import (
    DIGEST,
    OWNER,
    SET_A,
    SET_B,
    Book,
    claimed,
    count_release,
    data_set,
    opened,
    reserved,
    steps,
)

from offsite.secure.errors import OverBudgetError
from offsite.secure.privacy.filter import RenyiFilter
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord, Terms
from offsite.secure.privacy.ledger.bodies import Adaptivity, Committed, LimitSet
from offsite.secure.privacy.ledger.verification import verify_ledger

RECORD = AccountantsOfRecord()
EXACT, FILTER = Adaptivity.PREREGISTERED, Adaptivity.FILTER
LIMIT = LimitSet(2.0, 1e-5)


def terms(adaptivity: Adaptivity, epsilon: float = 2.0) -> Terms:
    return Terms(LimitSet(epsilon, 1e-5), adaptivity, steps(1))


def test_an_exact_sum_is_the_published_figure() -> None:
    """sigma 1, q 0.01, 1000 steps, delta 1e-5: 1.828."""
    assert RECORD.epsilon((steps(600), steps(400)), terms(EXACT)) == pytest.approx(1.828, abs=1e-3)


@pytest.mark.parametrize("adaptivity", Adaptivity)
def test_what_fits_is_what_the_figure_says(adaptivity: Adaptivity) -> None:
    for count in (1, 100, 900, 1000, 1200, 10**6):
        asked = terms(adaptivity)
        figure = RECORD.epsilon((steps(count),), asked)
        assert RECORD.fits((steps(count),), asked) == (figure <= 2.0)


def test_a_filter_sums_as_the_filter_itself_admits() -> None:
    """It ends where `RenyiFilter` ends, step for step."""
    found = RenyiFilter.for_plan(2.0, 1e-5, (steps(1),))
    for uses in (1, 500, 1000, 1200, 1500):
        after = found.charged([steps(uses)])
        assert RECORD.epsilon((steps(uses),), terms(FILTER)) == after.epsilon_spent
        assert RECORD.fits((steps(uses),), terms(FILTER)) is after.is_kept
    assert RECORD.fits((steps(500),), terms(FILTER))
    assert not RECORD.fits((steps(10**5),), terms(FILTER))


def test_the_order_of_a_filter_stays_when_other_mechanisms_follow() -> None:
    """Which costs: the order that would be best for all of them together was not fixed before."""
    history = (steps(100), steps(50, 4.0), count_release(8.0))
    found = RenyiFilter.for_plan(2.0, 1e-5, (steps(1),)).charged(history)
    figure = RECORD.epsilon(history, terms(FILTER))
    assert figure == pytest.approx(found.epsilon_spent, rel=1e-9)
    best = RenyiFilter.for_plan(2.0, 1e-5, history).charged(history)
    assert figure > best.epsilon_spent + 0.01


def test_beyond_any_use_there_is_no_figure() -> None:
    assert RECORD.epsilon((steps(10**6, 0.3),), terms(EXACT)) == math.inf
    assert not RECORD.fits((steps(10**6, 0.3),), terms(EXACT))
    assert RECORD.epsilon((steps(1),), terms(FILTER, 1e-9)) == math.inf


def test_campaigns_on_overlapping_data_are_refused_by_the_real_accountants() -> None:
    """The second would take epsilon beyond 2; it is refused, and what fits is admitted."""
    book = Book()
    book.write(opened())
    book.write(LIMIT)
    book.write(data_set(SET_A))
    book.write(data_set(SET_B, SET_A))

    def admit(name: str, at: bytes, count: int, adaptivity: Adaptivity) -> None:
        use = reserved(name, at, steps(count), adaptivity)
        record, _ = book.ledger.admit(use, RECORD, OWNER, 0.0, bytes(16))
        book.records.append(record)

    admit("c1", SET_A, 600, EXACT)
    claim = book.write(claimed(0, 600))
    book.write(Committed(claim.entry.seq, 600, DIGEST))
    with pytest.raises(OverBudgetError) as caught:
        admit("c2", SET_B, 600, FILTER)
    fitting = caught.value.steps_that_fit
    decides = RenyiFilter.for_plan(2.0, 1e-5, (steps(1),))
    assert decides.charged([steps(600 + fitting)]).is_kept
    assert not decides.charged([steps(601 + fitting)]).is_kept
    assert 0 < fitting < 600
    admit("c2", SET_B, fitting, FILTER)
    assert verify_ledger(book.data, OWNER.public, accounting=RECORD).faults == ()
