"""`privacy-audit budget`: what was spent and what is left, by data set, campaign and year; what if.

A figure of one campaign or one year is that of its steps alone. They do not add up to the account's:
privacy losses compose, and the account is less than their sum. Steps that never ran, of a campaign that
ended early, count where they count in the account (`privacy.ledger.budget`), in the year of its end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from rich.console import Group, RenderableType
from rich.table import Table

from offsite.audit.ledger import AccountLine, LedgerAudit
from offsite.emulator.printable import printable
from offsite.secure.errors import ConfigError, OverBudgetError
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord, Accounting, Terms
from offsite.secure.privacy.ledger.admission import admit
from offsite.secure.privacy.ledger.bodies import Adaptivity, LimitSet, ReleasedOther
from offsite.secure.privacy.ledger.budget import Budget
from offsite.secure.privacy.mechanisms import PoissonGaussian

WHAT_IF = "what if"


@dataclass(frozen=True, slots=True)
class SpentLine:
    """What one campaign spent in one year of one data set, by itself."""

    data_set: bytes
    campaign_id: str
    year: int
    steps: int
    never_ran: int
    """Of the steps."""
    epsilon: float

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "data_set": self.data_set.hex(),
            "campaign": self.campaign_id,
            "year": self.year,
            "steps": self.steps,
            "never_ran": self.never_ran,
            "epsilon_alone": self.epsilon,
        }


@dataclass(frozen=True, slots=True)
class Question:
    """So many more steps, drawn with `sampling` and noised with `noise` times the clip norm."""

    steps: int
    sampling: Fraction
    noise: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one data set: the account after it, or how many of the steps would fit."""

    data_set: bytes
    after: float | None
    steps_that_fit: int

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "data_set": self.data_set.hex(),
            "fits": self.after is not None,
            "epsilon_after": self.after,
            "steps_that_fit": self.steps_that_fit,
        }


def spent_lines(budget: Budget, accounting: Accounting | None = None) -> Iterator[SpentLine]:
    """Every campaign and release, by year, in the order of the ledger."""
    accounting = accounting or AccountantsOfRecord()
    for spend in budget.spends():
        limit = budget.limit_of(spend.data_set)
        if limit is None:
            continue
        terms = Terms(limit, Adaptivity.PREREGISTERED, spend.mechanism)
        epsilon = accounting.epsilon((spend.mechanism,), terms)
        name = spend.campaign_id or "a release outside of training"
        uses, unused = spend.mechanism.uses, spend.never_ran
        yield SpentLine(spend.data_set, name, spend.year, uses, unused, epsilon)


def answers(
    budget: Budget, question: Question, accounting: Accounting | None = None
) -> Iterator[Answer]:
    """What the question would do to every data set. Nothing is changed."""
    accounting = accounting or AccountantsOfRecord()
    for data_set, added in budget.data_sets.items():
        if budget.limit_of(data_set) is None:
            continue
        mechanism = PoissonGaussian(
            question.noise, question.sampling, question.steps, added.unit, added.adjacency
        )
        kind = Adaptivity.FILTER if budget.has_released(data_set) else Adaptivity.PREREGISTERED
        use = ReleasedOther(WHAT_IF, data_set, mechanism, kind, bytes(32))
        try:
            accounts = admit(budget, use, accounting).accounts
        except OverBudgetError as error:
            yield Answer(data_set, None, error.steps_that_fit)
            continue
        after = next(account.after for account in accounts if account.data_set == data_set)
        yield Answer(data_set, after, question.steps)


def question_of(steps: int | None, sampling: str | None, noise: float | None) -> Question | None:
    """The question that the flags ask; None for none.

    Raises:
        ConfigError: only some of them are given, or the rate is none.
    """
    if steps is None or sampling is None or noise is None:
        if (steps, sampling, noise) != (None, None, None):
            raise ConfigError("expected --steps, --sampling and --noise together, found some alone")
        return None
    try:
        rate = Fraction(sampling)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1:
        raise ConfigError(
            f"--sampling: expected a rate like 1/100 or 0.01, found {sampling[:40]!r}"
        )
    return Question(steps, rate, noise)


def render(
    audit: LedgerAudit, lines: list[SpentLine], found: list[Answer], question: Question | None
) -> RenderableType:
    """For a person."""
    tables = [_left(audit.accounts), _by_campaign(lines)]
    if question is not None:
        tables.append(_what_if(question, found))
    return Group(*tables)


def document(audit: LedgerAudit, lines: list[SpentLine], found: list[Answer]) -> dict[str, object]:
    """For `--json`."""
    return {
        "is_valid": not audit.findings.faults,
        "owner_key": audit.keys.owner.raw.hex(),
        "owner_key_is_stated": audit.keys.is_stated,
        "data_sets": [
            {**account.document(), "left": _left_of(account.limit, account.exposed)}
            for account in audit.accounts
        ],
        "spent": [line.document() for line in lines],
        "what_if": [answer.document() for answer in found],
    }


def _left_of(limit: LimitSet | None, exposed: float | None) -> float | None:
    return None if limit is None or exposed is None else max(0.0, limit.epsilon - exposed)


def _left(accounts: tuple[AccountLine, ...]) -> Table:
    table = Table(title="Left of each data set's limit, after what is reserved")
    for name in ("data set", "limit", "delta", "spent", "with reserved", "left"):
        table.add_column(name, justify="left" if name == "data set" else "right")
    for line in accounts:
        limit = line.limit
        figures = [line.spent, line.exposed, _left_of(limit, line.exposed)]
        table.add_row(
            line.data_set.hex()[:16],
            "none" if limit is None else f"{limit.epsilon:g}",
            "" if limit is None else f"{limit.delta:g}",
            *("-" if figure is None else f"{figure:.3f}" for figure in figures),
        )
    return table


def _by_campaign(lines: list[SpentLine]) -> Table:
    table = Table(title="Spent by campaign and year, each by itself")
    for name in ("data set", "campaign", "year", "steps", "of these never ran", "epsilon"):
        table.add_column(name, overflow="fold")
    for line in lines:
        name = printable(line.campaign_id)
        steps = (str(line.steps), str(line.never_ran))
        figures = (str(line.year), *steps, f"{line.epsilon:.3f}")
        table.add_row(line.data_set.hex()[:16], name, *figures)
    return table


def _what_if(question: Question, found: list[Answer]) -> Table:
    table = Table(
        title=f"What if: {question.steps} steps, q {question.sampling}, noise {question.noise:g}"
    )
    for name in ("data set", "epsilon after", "steps that fit"):
        table.add_column(name)
    for answer in found:
        after = "refused" if answer.after is None else f"{answer.after:.3f}"
        table.add_row(answer.data_set.hex()[:16], after, str(answer.steps_that_fit))
    return table
