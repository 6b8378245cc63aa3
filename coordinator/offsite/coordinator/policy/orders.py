"""What the owner orders while a campaign runs: pause, resume, abort, roll back.

    pause       the open round is let end, no other begins; `at_once`: the open attempt is given up
    resume      rounds begin again
    abort       the campaign is over with what there is; it never goes on
    rollback    the next round starts from an earlier closed round; none is deleted

An order is a row that stays: whether a campaign is paused or aborted, and from which round the next
one starts, follows from the rows alone, and so is the same after a kill at any moment. What an
order changes beside its own row (`Consequence`) is written in the same transaction. A running
`serve` looks for new rows in every wait (`turns`).

No clock, no database: situations in, consequences out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from offsite.secure.errors import ConfigError

REASON_CHARS: Final = 300
"""With the words around it, it fits into what edges are told."""


class Command(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


class Stage(StrEnum):
    """What a campaign is doing, its orders considered."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    FAILED = "failed"
    ABORTED = "aborted"


OVER: Final = frozenset({Stage.ENDED, Stage.FAILED, Stage.ABORTED})


@dataclass(frozen=True, slots=True)
class Order:
    """What the owner wants; `reason` is shown to edges."""

    command: Command
    reason: str = ""
    at_once: bool = False
    """Of a pause: the open attempt is given up."""
    to_round: int | None = None
    """Of a rollback; 0: the untouched adapter."""

    def __post_init__(self) -> None:
        if not (
            len(self.reason) <= REASON_CHARS and (not self.reason or self.reason.isprintable())
        ):
            raise ConfigError(
                f"reason: expected at most {REASON_CHARS} printable characters, found "
                f"{len(self.reason)}: {self.reason[:40]!a}"
            )

    @property
    def gives_up_attempt(self) -> bool:
        """Whether an open attempt ends without counting."""
        return self.command in (Command.ABORT, Command.ROLLBACK) or self.at_once


@dataclass(frozen=True, slots=True)
class GivenOrder:
    """An order of a campaign, as it is written down."""

    position: int
    order: Order
    after_round: int
    """How many rounds were closed when it was given."""
    given_unix_s: float


@dataclass(frozen=True, slots=True)
class Situation:
    """A campaign when an order is given."""

    state: Stage
    """What its row says; its orders may say otherwise."""
    orders: Sequence[GivenOrder]
    closed: int
    starts_from: int
    """The round whose adapter the next one starts from."""
    is_open: bool
    """Whether an attempt at a round is under way."""

    @property
    def stage(self) -> Stage:
        return stage_of(self.state, self.orders)


@dataclass(frozen=True, slots=True)
class Consequence:
    """What is written, all of it together, and what the owner is told."""

    text: str
    is_kept: bool = True
    """False: it is so already, and nothing is written."""
    gives_up_attempt: bool = False
    state: Stage | None = None
    """The state of the campaign's row from now on; None: as it was."""


def is_paused(orders: Sequence[GivenOrder]) -> bool:
    """Whether no round may begin."""
    last = _last(orders, Command.PAUSE, Command.RESUME)
    return last is not None and last.order.command is Command.PAUSE


def abortion(orders: Sequence[GivenOrder]) -> GivenOrder | None:
    """The order that ended the campaign, if one did."""
    return _last(orders, Command.ABORT)


def stage_of(state: Stage, orders: Sequence[GivenOrder]) -> Stage:
    """What a campaign is doing: an order counts before its row does."""
    if abortion(orders) is not None:
        return Stage.ABORTED
    return Stage.PAUSED if state not in OVER and is_paused(orders) else state


def starts_from(closed: int, orders: Sequence[GivenOrder]) -> int:
    """The round whose adapter the next one starts from, once `closed` rounds are; 0: untouched."""
    last = _last(orders, Command.ROLLBACK)
    if last is None or last.after_round != closed or last.order.to_round is None:
        return closed
    return last.order.to_round


def described(orders: Sequence[GivenOrder]) -> str:
    """Why it stands still, or was aborted, in the words of the newest order that says so."""
    last = abortion(orders)
    if last is None and is_paused(orders):
        last = _last(orders, Command.PAUSE)
    if last is None:
        return ""
    why = f": {last.order.reason}" if last.order.reason else ""
    if last.order.command is Command.PAUSE:
        return f"paused by its owner{why}"
    return f"aborted by its owner after round {last.after_round}{why}"


def consequence(order: Order, situation: Situation) -> Consequence:
    """What follows from an order.

    Raises:
        ConfigError: it makes no sense now; says what would.
    """
    return {
        Command.PAUSE: _pause,
        Command.RESUME: _resume,
        Command.ABORT: _abort,
        Command.ROLLBACK: _rollback,
    }[order.command](order, situation)


def _pause(order: Order, now: Situation) -> Consequence:
    if now.stage in OVER and now.stage is not Stage.FAILED:
        raise ConfigError(f"expected a campaign that can go on, found one that is {now.stage}")
    gives_up = order.at_once and now.is_open
    if is_paused(now.orders) and not gives_up:
        return Consequence("the campaign is paused already", is_kept=False)
    if gives_up:
        text = f"paused: the attempt at round {now.closed + 1} is given up"
    elif now.is_open:
        text = f"paused: round {now.closed + 1} is let end, the next one waits for `resume`"
    else:
        text = "paused: the next round waits for `resume`"
    return Consequence(text, gives_up_attempt=gives_up)


def _resume(order: Order, now: Situation) -> Consequence:
    if now.stage is Stage.ABORTED:
        raise ConfigError("expected a campaign that can go on, found one that is aborted")
    if not is_paused(now.orders):
        return Consequence("the campaign is not paused", is_kept=False)
    return Consequence("resumed")


def _abort(order: Order, now: Situation) -> Consequence:
    if now.stage is Stage.ABORTED:
        return Consequence("the campaign is aborted already", is_kept=False)
    if now.stage is Stage.ENDED:
        raise ConfigError("expected a campaign that goes on, found one that has ended")
    return Consequence(
        f"aborted after round {now.closed}: it never goes on; what its closed rounds made can be "
        "exported",
        gives_up_attempt=now.is_open,
        state=Stage.ENDED,
    )


def _rollback(order: Order, now: Situation) -> Consequence:
    target = order.to_round
    if target is None or not 0 <= target <= now.closed:
        raise ConfigError(
            f"expected a closed round, 1 to {now.closed}, or 0 for the untouched adapter, found "
            f"{target}"
        )
    if target == now.starts_from:
        return Consequence(f"the next round starts from round {target} already", is_kept=False)
    if now.stage is Stage.ABORTED:
        return Consequence(f"the result is that of the rounds up to {target}; it stays aborted")
    return Consequence(
        f"round {now.closed + 1} starts from round {target}; the rounds after it stay in the history",
        gives_up_attempt=now.is_open,
        state=Stage.WAITING if now.state in OVER else None,
    )


def _last(orders: Sequence[GivenOrder], *commands: Command) -> GivenOrder | None:
    return next((o for o in reversed(orders) if o.order.command in commands), None)
