"""The fold: what was spent never falls, and is never below what ran nor above what was reserved."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secure.privacy.ledger.scenes import (
    DIGEST,
    NOW_UNIX_S,
    OWNER,
    SET_A,
    SET_B,
    SET_C,
    Book,
    campaign,
    claimed,
    count_release,
    data_set,
    released,
    reserved,
    started,
    steps,
)

from offsite.secure.privacy.ledger.bodies import Adaptivity, Charged, Closed, Committed, LimitSet
from offsite.secure.privacy.ledger.budget import Budget, Campaign, Outcome, Spend, fold
from offsite.secure.privacy.ledger.ledger import Ledger
from offsite.secure.privacy.mechanisms import Mechanism

TOTAL = 100
FILTER = Adaptivity.FILTER


def uses(mechanisms: tuple[Mechanism, ...]) -> int:
    return sum(mechanism.uses for mechanism in mechanisms)


def test_a_reservation_is_exposed_before_anything_is_spent() -> None:
    book = started()
    book.write(reserved())
    budget = book.ledger.budget
    assert budget.exposure(SET_A) == (steps(100),)
    assert budget.spent(SET_A) == ()
    assert not budget.has_released(SET_A)


def test_a_claim_is_spent_whatever_becomes_of_it() -> None:
    book = campaign(2)
    claim = book.write(claimed(20, 7))
    budget = book.ledger.budget
    assert budget.spent(SET_A) == (steps(27),)
    assert [item.seq for item in budget.open_claims()] == [claim.entry.seq]
    book.write(Committed(claim.entry.seq, 0, DIGEST))
    assert budget.spent(SET_A) == (steps(27),)
    assert budget.exposure(SET_A) == (steps(100),)
    assert budget.campaigns["c1"].unclaimed == 73


def test_a_crash_is_charged_whole() -> None:
    book = campaign(2)
    book.write(claimed(20, 7))
    (charge,) = book.ledger.charges
    assert charge == Charged(8, 7, charge.reason)
    book.write(charge)
    found = book.ledger.budget.campaigns["c1"]
    assert (found.spent, found.charged, found.unclaimed) == (27, 7, 73)
    assert book.ledger.charges == ()
    assert book.ledger.budget.claims[8].outcome is Outcome.CHARGED


def test_an_early_end_frees_steps_for_a_filter_and_not_for_an_exact_sum() -> None:
    book = campaign(3)
    book.write(Closed("c1", 70))
    budget = book.ledger.budget
    assert budget.exposure(SET_A) == (steps(100),)
    assert budget.exposure(SET_A, FILTER) == (steps(30),)
    assert budget.spent(SET_A) == (steps(100),) and budget.never_ran(SET_A) == 70
    book.write(reserved("c2", mechanism=steps(5, 2.0), adaptivity=FILTER))
    assert budget.adaptivity(SET_A) is FILTER
    assert budget.exposure(SET_A) == (steps(30), steps(5, 2.0))
    assert budget.spent(SET_A) == (steps(30),) and budget.never_ran(SET_A) == 0


def test_a_campaign_that_never_began_leaves_nothing() -> None:
    book = started()
    book.write(reserved())
    book.write(Closed("c1", 100))
    assert book.ledger.budget.exposure(SET_A) == ()
    book.write(reserved("c2"))  # planned in advance: nothing was released


def test_overlapping_sets_share_what_they_spend() -> None:
    book = started()
    book.write(data_set(SET_B, SET_A))
    book.write(data_set(SET_C, SET_B))
    for name, letter in (("a", SET_A), ("b", SET_B), ("c", SET_C)):
        book.write(reserved(name, letter, steps({"a": 1, "b": 10, "c": 100}[name])))
    budget = book.ledger.budget
    assert uses(budget.exposure(SET_A)) == 11
    assert uses(budget.exposure(SET_B)) == 111
    assert uses(budget.exposure(SET_C)) == 110
    assert budget.family(SET_B) == {SET_A, SET_B, SET_C}


def test_a_set_has_its_own_limit_or_that_of_all() -> None:
    book = started(8.0)
    budget = book.ledger.budget
    general = LimitSet(8.0, 1e-5)
    assert budget.limit_of(SET_A) == budget.limit_of(SET_B) == general
    own = LimitSet(3.0, 1e-6, data_set=SET_A)
    book.write(own)
    assert budget.limit_of(SET_A) == own
    assert budget.limit_of(SET_B) == general
    assert [seq for seq, _ in budget.limit_changes] == [1, 3]
    assert Budget().limit_of(SET_A) is None


def test_spends_are_listed_by_campaign_and_year() -> None:
    book = campaign(2)
    book.write(claimed(20, 7), now_unix_s=NOW_UNIX_S + 366 * 86400.0)
    assert list(book.ledger.budget.spends()) == [
        Spend(SET_A, "c1", 2026, steps(20)),
        Spend(SET_A, "c1", 2027, steps(7)),
    ]
    (charge,) = book.ledger.charges
    book.write(charge)
    book.write(Closed("c1", 73), now_unix_s=NOW_UNIX_S + 2 * 366 * 86400.0)
    assert list(book.ledger.budget.spends())[2:] == [Spend(SET_A, "c1", 2028, steps(73), 73)]
    book = started()
    book.write(released())
    assert list(book.ledger.budget.spends()) == [Spend(SET_A, None, 2026, count_release())]
    assert book.ledger.budget.spent(SET_A) == (count_release(),)


class Machine:
    """An edge over its file: it runs, is killed anywhere, and starts again."""

    def __init__(self) -> None:
        self.book = started()
        self.book.write(reserved(mechanism=steps(TOTAL)))
        self.ran = 0  # steps that really happened
        self.file = self.book.data
        self.spent: list[int] = [0]

    @property
    def found(self) -> Campaign:
        return self.book.ledger.budget.campaigns["c1"]

    def block(self, count: int, executed: int, killed_at: str, cut: int) -> None:
        """Claim, run, commit; killed while writing the claim, while running, or after."""
        count = min(count, self.found.unclaimed)
        if not count or not self.found.is_open:
            return
        claim = self.book.write(claimed(self.found.next_step, count))
        line = claim.to_line()
        if killed_at == "claiming":
            return self.restart(self.file + line[: cut % len(line)])
        self.file += line
        self.ran += min(executed, count)
        if killed_at == "running":
            return self.restart(self.file)
        commit = self.book.write(Committed(claim.entry.seq, min(executed, count), DIGEST)).to_line()
        if killed_at == "committing":
            return self.restart(self.file + commit[: cut % len(commit)])
        self.file += commit
        self.note()
        return None

    def restart(self, file: bytes) -> None:
        ledger, self.file = Ledger.read(file, OWNER.public)
        self.book = Book(ledger)
        for charge in ledger.charges:
            self.file += self.book.write(charge).to_line()
        self.note()

    def note(self) -> None:
        self.spent.append(self.found.spent)


STEPS: st.SearchStrategy[tuple[int, int, str, int]] = st.tuples(
    st.integers(1, 30),
    st.integers(0, 30),
    st.sampled_from(["", "claiming", "running", "committing"]),
    st.integers(0, 1000),
)


@given(st.lists(STEPS, max_size=12))
@settings(max_examples=150, deadline=None)
def test_killed_anywhere_it_never_spends_less_than_it_ran_nor_more_than_it_reserved(
    blocks: list[tuple[int, int, str, int]],
) -> None:
    machine = Machine()
    for block in blocks:
        machine.block(*block)
        assert machine.ran <= machine.found.spent <= TOTAL
        assert uses(machine.book.ledger.budget.exposure(SET_A)) == TOTAL
    assert machine.spent == sorted(machine.spent)
    ledger, _ = Ledger.read(machine.file, OWNER.public)
    assert ledger.budget.campaigns == machine.book.ledger.budget.campaigns


@given(st.integers(0, 10))
@settings(deadline=None)
def test_what_was_spent_is_the_fold_of_the_entries(size: int) -> None:
    book = campaign(3)
    budget = fold(record.entry for record in book.records[:size])
    expected = Budget()
    for record in book.records[:size]:
        expected.post(record.entry)
    assert vars(budget) == vars(expected)


def test_a_broken_rule_counts_against_the_owner() -> None:
    """Steps that were claimed or committed twice are spent twice, whoever wrote that."""

    def spent(*more: Callable[[Book], None]) -> int:
        book = campaign(2)
        for write in more:
            write(book)
        return book.ledger.budget.campaigns["c1"].spent

    def again(body: Committed | Charged) -> Callable[[Book], None]:
        def write(book: Book) -> None:
            entry = book.records[-1].entry
            book.ledger.budget.post(type(entry)(9, DIGEST, bytes(16), NOW_UNIX_S, body))

        return write

    assert spent() == 20
    assert spent(again(Committed(6, 10, DIGEST))) == 30
    assert spent(again(Committed(6, 15, DIGEST))) == 35
    assert spent(again(Charged(6, 0, "refund"))) == 20
