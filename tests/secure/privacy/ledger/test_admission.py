"""Admission: what would exceed a limit is refused before it starts, and says what would fit."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secure.privacy.ledger.scenes import (
    DIGEST,
    OWNER,
    SET_A,
    SET_B,
    SET_C,
    Book,
    Simple,
    claimed,
    data_set,
    opened,
    released,
    reserved,
    started,
    steps,
)

from offsite.secure.errors import ConfigError, OverBudgetError, PolicyError
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.ledger.accountants import Terms
from offsite.secure.privacy.ledger.admission import (
    Admission,
    Use,
    admit,
    epsilon_of_account,
    is_admissible,
    refusal,
    steps_that_fit,
)
from offsite.secure.privacy.ledger.bodies import (
    Adaptivity,
    Closed,
    Committed,
    LimitSet,
    ReleasedOther,
    Reserved,
    StatedEpsilon,
)
from offsite.secure.privacy.ledger.chain import Tip, next_record
from offsite.secure.privacy.ledger.faults import FaultKind
from offsite.secure.privacy.ledger.verification import verify_ledger
from offsite.secure.privacy.mechanisms import Mechanism
from offsite.secure.privacy.units import Unit

FILTER = Adaptivity.FILTER
SETS = (SET_A, SET_B, SET_C)


def ask(book: Book, use: Use) -> Admission:
    return admit(book.ledger.budget, use, Simple())


def test_a_campaign_within_the_limit_is_admitted_and_says_what_it_costs() -> None:
    book = started(100.0)
    admission = ask(book, reserved(mechanism=steps(100)))
    assert admission.alone == 100
    (account,) = admission.accounts
    assert (account.before, account.after, account.limit.epsilon) == (0.0, 100.0, 100.0)
    assert book.ledger.budget.campaigns == {}  # asking changes nothing


def test_a_campaign_beyond_the_limit_is_refused_before_it_starts() -> None:
    book = started(100.0)
    head = book.ledger.head()
    with pytest.raises(OverBudgetError, match="100 of 101 steps would fit") as caught:
        book.write(reserved(mechanism=steps(101)))
    assert caught.value.steps_that_fit == 100
    assert book.ledger.head() == head
    book.write(refusal(reserved(mechanism=steps(101)), caught.value))
    assert book.records[-1].entry.kind == "refused"
    book.write(reserved(mechanism=steps(100)))
    with pytest.raises(OverBudgetError, match="0 of 1 steps would fit"):
        book.write(reserved("c2", mechanism=steps(1)))


def test_what_is_reserved_counts_before_it_is_spent() -> None:
    book = started(100.0)
    book.write(reserved(mechanism=steps(60)))
    with pytest.raises(OverBudgetError, match=r"found 110.0000 with this on top of 60.0000; 40 of"):
        book.write(reserved("c2", mechanism=steps(50)))


def test_one_campaign_has_a_limit_of_its_own() -> None:
    book = started(100.0)
    book.write(LimitSet(100.0, 1e-5, campaign_epsilon=30.0))
    with pytest.raises(OverBudgetError, match=r"a campaign of epsilon at most 30 .*; 30 of 31"):
        book.write(reserved(mechanism=steps(31)))
    book.write(reserved(mechanism=steps(30)))


def test_two_campaigns_on_overlapping_data_compose() -> None:
    book = started(100.0)
    book.write(data_set(SET_B, SET_A))
    book.write(data_set(SET_C))
    book.write(reserved("c1", SET_A, steps(70)))
    with pytest.raises(OverBudgetError, match="30 of 31 steps would fit"):
        book.write(reserved("c2", SET_B, steps(31)))
    book.write(reserved("c3", SET_C, steps(100)))  # other records


def test_an_overlapping_set_with_a_lower_limit_decides() -> None:
    book = started(100.0)
    book.write(data_set(SET_B, SET_A))
    book.write(LimitSet(10.0, 1e-5, data_set=SET_B))
    with pytest.raises(OverBudgetError, match="10 of 11 steps would fit"):
        book.write(reserved("c1", SET_A, steps(11)))


def test_without_a_limit_nothing_is_admitted() -> None:
    book = Book()
    book.write(opened())
    book.write(data_set(SET_A))
    with pytest.raises(PolicyError, match="expected a limit"):
        book.write(reserved())
    with pytest.raises(PolicyError, match="expected a limit"):
        epsilon_of_account(book.ledger.budget, SET_A, Simple())
    book.write(LimitSet(100.0, 1e-5, data_set=SET_A))
    book.write(data_set(SET_B, SET_A))
    with pytest.raises(PolicyError, match=f"data set {SET_B.hex()[:16]}"):
        book.write(reserved())


def test_a_release_outside_of_training_is_charged() -> None:
    book = started(100.0)
    book.write(released())
    assert epsilon_of_account(book.ledger.budget, SET_A, Simple()) == 1
    with pytest.raises(OverBudgetError):
        book.write(reserved(mechanism=steps(99), adaptivity=FILTER))


def test_what_is_planned_later_is_added_up_by_the_filter() -> None:
    """And with it all that was spent before; steps that never ran are free for it."""
    book = started(100.0)
    book.write(reserved(mechanism=steps(90)))
    book.run(0, 10)
    book.write(Closed("c1", 80))
    assert epsilon_of_account(book.ledger.budget, SET_A, Simple()) == 90
    # While sums are exact, what was planned counts: when it ended may depend on what came out.
    assert epsilon_of_account(book.ledger.budget, SET_A, Simple(), only_spent=True) == 90
    later = reserved("c2", mechanism=steps(41), adaptivity=FILTER)
    with pytest.raises(OverBudgetError, match="40 of 41 steps would fit"):
        book.write(later)
    book.write(dataclasses.replace(later, mechanism=steps(40)))
    assert epsilon_of_account(book.ledger.budget, SET_A, Simple()) == 100


def test_the_order_of_a_filter_is_that_of_the_first_use() -> None:
    """Whatever became of it: nothing that happens later may move the order."""
    found: list[Terms] = []

    class Noting(Simple):
        def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
            found.append(terms)
            return 0.0

    book = started()
    book.write(reserved("c1", mechanism=steps(7, 3.0)))
    book.write(reserved("c2"))
    book.write(Closed("c1", 7))
    book.write(claimed(0, 1, "c2"))
    admit(book.ledger.budget, reserved("c3", adaptivity=FILTER), Noting())
    assert found[-1].adaptivity is FILTER
    assert found[-1].first == steps(7, 3.0)


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_figure_that_is_none_admits_nothing(figure: float) -> None:
    class Broken(Simple):
        def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
            return figure

    with pytest.raises(OverBudgetError, match="0 of 100 steps would fit"):
        admit(started().ledger.budget, reserved(), Broken())


class Player:
    """An owner whose campaigns do as they like, within what is admitted."""

    def __init__(self, limits: Sequence[float]) -> None:
        self.book = started(max(limits))
        self.book.write(data_set(SET_B, SET_A))
        self.book.write(data_set(SET_C, SET_B))
        for name, epsilon in zip(SETS, limits, strict=True):
            self.book.write(LimitSet(epsilon, 1e-5, data_set=name))
        self.names: list[str] = []

    def reserve(self, at: int, count: int, sigma: float) -> None:
        budget = self.book.ledger.budget
        is_late = budget.has_released(SETS[at])
        adaptivity = FILTER if is_late else Adaptivity.PREREGISTERED
        use = reserved(f"c{self.book.ledger.size}", SETS[at], steps(count, sigma), adaptivity)
        fitting = steps_that_fit(budget, use, Simple())
        assert is_admissible(budget, use, Simple()) == (fitting == count)
        try:
            self.book.write(use)
            self.names.append(use.campaign_id)
            assert fitting == count
        except OverBudgetError as error:
            assert error.steps_that_fit == fitting < count

    def claim(self, at: int, count: int, sigma: float) -> None:
        name = self.names[at % len(self.names)] if self.names else ""
        campaign = self.book.ledger.budget.campaigns.get(name)
        if campaign is None or not campaign.unclaimed:
            return
        count = min(count, campaign.unclaimed)
        claim = self.book.write(claimed(campaign.next_step, count, name))
        self.book.write(Committed(claim.entry.seq, count, DIGEST))

    def release(self, at: int, count: int, sigma: float) -> None:
        is_late = self.book.ledger.budget.has_released(SETS[at])
        adaptivity = FILTER if is_late else Adaptivity.PREREGISTERED
        try:
            self.book.write(released(SETS[at], adaptivity=adaptivity))
        except OverBudgetError:
            pass

    def close(self, at: int, count: int, sigma: float) -> None:
        name = self.names[at % len(self.names)] if self.names else ""
        campaign = self.book.ledger.budget.campaigns.get(name)
        if campaign is not None and campaign.is_open:
            self.book.write(Closed(name, campaign.unclaimed))


MOVES = st.tuples(
    st.sampled_from([Player.reserve, Player.claim, Player.claim, Player.release, Player.close]),
    st.integers(0, 2),
    st.integers(1, 30),
    st.sampled_from([0.5, 1.0, 2.0]),
)


@given(st.lists(st.floats(1.0, 60.0), min_size=3, max_size=3), st.lists(MOVES, max_size=15))
@settings(max_examples=120, deadline=None)
def test_what_is_admitted_never_exceeds_a_limit(
    limits: list[float], moves: list[tuple[object, ...]]
) -> None:
    player = Player(limits)
    for move, at, count, sigma in moves:
        assert callable(move)
        move(player, at, count, sigma)
        for name, limit in zip(SETS, limits, strict=True):
            found = epsilon_of_account(player.book.ledger.budget, name, Simple())
            assert found <= limit + 1e-9
            spent = epsilon_of_account(player.book.ledger.budget, name, Simple(), only_spent=True)
            assert spent <= found
    findings = verify_ledger(player.book.data, OWNER.public, accounting=Simple())
    assert findings.faults == ()


class Generous(Simple):
    """An owner's machine that lets everything through."""

    def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
        return 0.0


def test_a_stated_epsilon_that_is_wrong_is_named() -> None:
    for pld, is_right in ((100.0, True), (99.99, True), (99.9, False), (120.0, False)):
        book = started(500.0)
        stated = StatedEpsilon(1e-5, pld, None, 200.0, "simple 1")
        book.write(dataclasses.replace(reserved(), stated=stated))
        faults = verify_ledger(book.data, OWNER.public, accounting=Simple()).faults
        assert [fault.kind for fault in faults] == ([] if is_right else [FaultKind.MISSTATED])


def test_an_account_without_a_figure_is_named_and_what_follows_is_read() -> None:
    """Mixed units, forced into the ledger, have no sum; an audit says so and goes on."""

    class Strict(Simple):
        def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
            merged(mechanisms)
            if terms.limit.delta > 0.5:
                raise ConfigError("delta")
            return super().epsilon(mechanisms, terms)

    book = started(100.0)
    book.write(reserved())
    stated = StatedEpsilon(0.9, 100.0, None, 200.0, "simple 1")
    persons = reserved("c2", mechanism=steps(1, unit=Unit.PERSON))
    forced = next_record(
        Tip.after(book.records[-1]),
        dataclasses.replace(persons, stated=stated),
        OWNER,
        2e9,
        bytes(16),
    )
    faults = verify_ledger(book.data + forced.to_line(), OWNER.public, accounting=Strict()).faults
    assert [(fault.kind, fault.first) for fault in faults] == [
        (FaultKind.INCONSISTENT, 4),
        (FaultKind.MISSTATED, 4),
        (FaultKind.OVERSPENT, 4),
    ]


def test_a_limit_that_was_exceeded_is_named_where_it_happened() -> None:
    book = started(100.0)
    book.write(data_set(SET_B, SET_A))
    uses: list[Reserved | ReleasedOther] = [
        reserved("c1", SET_A, steps(60)),
        reserved("c2", SET_B, steps(60)),
        reserved("c3", SET_B, steps(60)),
    ]
    for use in uses:
        record, _ = book.ledger.admit(use, Generous(), OWNER, 0.0, bytes(16))
        book.records.append(record)
    findings = verify_ledger(book.data, OWNER.public, accounting=Simple())
    assert [(fault.kind, fault.first) for fault in findings.faults] == [
        (FaultKind.OVERSPENT, 5),
        (FaultKind.OVERSPENT, 5),
    ]
    assert "is 120.0000, its limit is 100" in findings.faults[0].problem
    assert verify_ledger(book.data, OWNER.public).faults == ()  # limits are not looked at
