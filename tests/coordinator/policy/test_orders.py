"""What an order does, alone and in any sequence with rounds, kills and other orders."""

import itertools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from offsite.coordinator.policy.orders import (
    Command,
    Consequence,
    GivenOrder,
    Order,
    Situation,
    Stage,
    consequence,
    described,
    stage_of,
    starts_from,
)
from offsite.coordinator.round_metrics import standing_of
from offsite.coordinator.tables.campaigns import (
    INTERRUPTED,
    AttemptOverError,
    CampaignTable,
    FileRef,
    RoundRow,
    RoundState,
)
from offsite.coordinator.tables.database import Database
from offsite.secure.errors import ConfigError

PAUSE, RESUME = Order(Command.PAUSE, "holidays"), Order(Command.RESUME)
AT_ONCE = Order(Command.PAUSE, at_once=True)
ABORT = Order(Command.ABORT, "no consent")


def _back(to_round: int | None) -> Order:
    return Order(Command.ROLLBACK, to_round=to_round)


def _given(*orders: Order, after_round: int = 3) -> list[GivenOrder]:
    return [GivenOrder(n, order, after_round, 0.0) for n, order in enumerate(orders, start=1)]


def _situation(
    *orders: Order, state: Stage = Stage.RUNNING, closed: int = 3, is_open: bool = True
) -> Situation:
    given = _given(*orders, after_round=closed)
    return Situation(state, given, closed, starts_from(closed, given), is_open)


# ---- one order


@pytest.mark.parametrize(
    ("order", "situation", "expected"),
    [
        (PAUSE, _situation(), (True, False, None)),
        (PAUSE, _situation(state=Stage.FAILED, is_open=False), (True, False, None)),
        (PAUSE, _situation(PAUSE), (False, False, None)),
        (AT_ONCE, _situation(), (True, True, None)),
        (AT_ONCE, _situation(PAUSE), (True, True, None)),
        (AT_ONCE, _situation(PAUSE, is_open=False), (False, False, None)),
        (PAUSE, _situation(PAUSE, RESUME), (True, False, None)),
        (RESUME, _situation(PAUSE), (True, False, None)),
        (RESUME, _situation(), (False, False, None)),
        (ABORT, _situation(), (True, True, Stage.ENDED)),
        (ABORT, _situation(PAUSE, is_open=False), (True, False, Stage.ENDED)),
        (ABORT, _situation(state=Stage.FAILED, is_open=False), (True, False, Stage.ENDED)),
        (ABORT, _situation(ABORT, state=Stage.ENDED), (False, False, None)),
        (_back(1), _situation(), (True, True, None)),
        (_back(0), _situation(is_open=False), (True, False, None)),
        (_back(3), _situation(), (False, False, None)),
        (_back(3), _situation(_back(1)), (True, True, None)),
        (_back(2), _situation(state=Stage.ENDED, is_open=False), (True, False, Stage.WAITING)),
        (_back(2), _situation(ABORT, state=Stage.ENDED, is_open=False), (True, False, None)),
    ],
)
def test_an_order_has_its_consequence(
    order: Order, situation: Situation, expected: tuple[bool, bool, Stage | None]
) -> None:
    done = consequence(order, situation)
    assert (done.is_kept, done.gives_up_attempt, done.state) == expected


@pytest.mark.parametrize(
    ("order", "situation", "said"),
    [
        (PAUSE, _situation(state=Stage.ENDED), "that can go on, found one that is ended"),
        (PAUSE, _situation(ABORT, state=Stage.ENDED), "found one that is aborted"),
        (RESUME, _situation(PAUSE, ABORT, state=Stage.ENDED), "found one that is aborted"),
        (ABORT, _situation(state=Stage.ENDED), "found one that has ended"),
        (_back(4), _situation(), "expected a closed round, 1 to 3, or 0"),
        (_back(-1), _situation(), "expected a closed round"),
        (_back(None), _situation(), "expected a closed round"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(
    order: Order, situation: Situation, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        consequence(order, situation)


def test_an_order_counts_before_the_row_of_its_campaign() -> None:
    assert stage_of(Stage.RUNNING, _given(PAUSE)) is Stage.PAUSED
    assert stage_of(Stage.RUNNING, _given(PAUSE, RESUME)) is Stage.RUNNING
    assert stage_of(Stage.ENDED, _given(PAUSE)) is Stage.ENDED
    assert stage_of(Stage.RUNNING, _given(ABORT)) is Stage.ABORTED  # killed before its row said so


def test_what_edges_are_told_names_the_round_and_the_reason() -> None:
    assert described(_given(PAUSE)) == "paused by its owner: holidays"
    assert described(_given(PAUSE, ABORT)) == "aborted by its owner after round 3: no consent"
    assert described(_given(PAUSE, RESUME)) == described([]) == ""


@pytest.mark.parametrize("reason", ["x" * 301, "two\nlines", "\x1b[2J"])
def test_a_reason_is_one_short_line(reason: str) -> None:
    with pytest.raises(ConfigError, match="reason: expected"):
        Order(Command.PAUSE, reason)


# ---- any sequence, on the real tables


class AnyOrder(RuleBasedStateMachine):
    """Rounds, orders and kills in any order, against a model that knows nothing of rows.

    `serve` stands for the coordinator's loop: it opens an attempt where it may, and tries to close
    one that it holds, hearing of orders when it looks and not before.
    """

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "coordinator.sqlite"
        self.reopen()
        self.row = self.table.create(b"r" * 32, "{}", 0.0)
        self.now = itertools.count(1)
        # The model.
        self.line: dict[int, int] = {}
        """Each closed round, and the round that it started from."""
        self.pointer, self.paused, self.aborted = 0, False, False
        self.held: RoundRow | None = None
        self.held_from, self.held_counts, self.heard = 0, False, 0
        self.attempts, self.kept, self.kept_then, self.is_ready = 0, 0, 0, False

    @rule()
    def reopen(self) -> None:
        """Killed, or another process: everything is in the file."""
        if hasattr(self, "database"):
            self.database.close()
        self.database = Database(self.path)
        self.table = CampaignTable(self.database)

    @property
    def campaign(self) -> int:
        return self.row.campaign_id

    # The coordinator.

    @precondition(lambda self: self.held is None and not self.paused and not self.aborted)
    @rule()
    def serve_looks(self) -> None:
        orders = self.table.orders(self.campaign)
        self.heard = max((given.position for given in orders), default=0)
        self.is_ready, self.kept_then = True, self.kept

    @precondition(lambda self: self.is_ready)
    @rule()
    def serve_opens(self) -> None:
        number, self.is_ready = len(self.line) + 1, False
        try:
            opened = self.table.open_round(self.campaign, number, next(self.now), self.heard)
        except AttemptOverError:
            assert self.kept > self.kept_then
            return
        assert self.kept == self.kept_then
        self.table.set_plan(opened, b"plan")
        self.held, self.held_from, self.held_counts = opened, self.pointer, True
        self.attempts += 1

    @precondition(lambda self: self.held is not None)
    @rule()
    def serve_closes(self) -> None:
        held = self.held
        assert held is not None
        number = held.round
        file = FileRef(f"round-{number}", bytes([number]) * 32)
        try:
            self.table.close_round(held, file, None, {}, next(self.now), self.heard)
        except AttemptOverError:
            assert not self.held_counts
        else:
            assert self.held_counts
            self.line[number], self.pointer = self.held_from, number
        self.held = None

    # The owner.

    def give(self, order: Order) -> Consequence | None:
        try:
            done = self.table.give_order(self.campaign, order, next(self.now))
        except ConfigError:
            return None
        self.kept += done.is_kept
        return done

    @rule(at_once=st.booleans())
    def pause(self, at_once: bool) -> None:
        done = self.give(Order(Command.PAUSE, at_once=at_once))
        assert (done is None) == self.aborted
        if done is not None:
            assert done.is_kept == (not self.paused or done.gives_up_attempt)
            self.paused = True
            self.held_counts &= not at_once

    @rule()
    def resume(self) -> None:
        done = self.give(RESUME)
        assert (done is None) == self.aborted
        if done is not None:
            assert done.is_kept == self.paused
            self.paused = False

    @precondition(lambda self: len(self.line) > 2)
    @rule()
    def abort(self) -> None:
        done = self.give(ABORT)
        assert done is not None and done.is_kept != self.aborted
        self.aborted, self.held_counts = True, False

    @rule(share=st.floats(-0.2, 1.2))
    def roll_back(self, share: float) -> None:
        target = round(share * len(self.line))
        done = self.give(_back(target))
        assert (done is None) == (not 0 <= target <= len(self.line))
        if done is not None:
            assert done.is_kept == (target != self.pointer)
            self.held_counts &= not done.is_kept
            self.pointer = target

    # What always holds.

    @invariant()
    def rows_say_what_the_model_says(self) -> None:
        row, orders = self.table.get(self.campaign), self.table.orders(self.campaign)
        assert row is not None
        stage = stage_of(Stage(row.state.value), orders)
        paused = Stage.PAUSED if self.paused else Stage.WAITING
        assert stage is (Stage.ABORTED if self.aborted else paused)
        assert starts_from(len(self.line), orders) == self.pointer
        assert (
            standing_of(self.table.rounds(self.campaign), orders, None).last_round == self.pointer
        )

    @invariant()
    def nothing_is_lost_and_no_round_is_closed_twice(self) -> None:
        rounds = self.table.rounds(self.campaign)
        closed = [r for r in rounds if r.state is RoundState.CLOSED]
        assert [r.round for r in closed] == sorted(self.line)
        assert all(r.adapter and r.adapter.path == f"round-{r.round}" for r in closed)
        assert (len(rounds), len(self.table.orders(self.campaign))) == (self.attempts, self.kept)
        is_open = [r for r in rounds if r.state is RoundState.OPEN]
        assert len(is_open) == int(self.held is not None and self.held_counts)
        given_up = [r for r in rounds if INTERRUPTED in r.metrics]
        assert all(r.state is RoundState.ABANDONED for r in given_up)

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()


@pytest.mark.usefixtures("no_fsync")
def test_orders_rounds_and_kills_in_any_sequence_keep_the_campaign_and_its_history() -> None:
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("order", [AT_ONCE, ABORT, _back(0)])
def test_no_round_is_closed_over_the_head_of_an_order(order: Order, tmp_path: Path) -> None:
    """Given before its attempt was opened, or after."""
    table = CampaignTable(Database(tmp_path / "coordinator.sqlite"))
    row = table.create(b"r" * 32, "{}", 0.0)
    close: Callable[[RoundRow, int], None] = lambda opened, heard: table.close_round(
        opened, FileRef("a", b"a" * 32), None, {}, 1.0, heard
    )
    close(table.open_round(row.campaign_id, 1, 0.0), 0)
    assert table.give_order(row.campaign_id, order, 1.0).is_kept
    with pytest.raises(AttemptOverError):
        table.open_round(row.campaign_id, 2, 1.0, 0)
    opened = table.open_round(row.campaign_id, 2, 1.0)
    with pytest.raises(AttemptOverError):
        close(opened, 0)
    position = table.orders(row.campaign_id)[-1].position
    close(opened, position)
