"""What a data set has spent of its owner's limit, in figures for a person."""

from dataclasses import dataclass

from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord
from offsite.secure.privacy.ledger.admission import epsilon_of_account
from offsite.secure.privacy.ledger.bodies import LimitSet
from offsite.secure.privacy.ledger.budget import Budget


@dataclass(frozen=True, slots=True)
class Spent:
    """Epsilons at the limit's delta."""

    limit: LimitSet
    spent: float
    reserved: float
    """Spent and reserved together."""
    never_ran: int = 0
    """Steps that count as spent since their campaign ended early; see `ledger.budget`."""

    def describe(self) -> str:
        """For the owner's terminal."""
        unused = ""
        if self.never_ran:
            unused = (
                f"; {self.never_ran} steps of it never ran and count all the same, until a later campaign "
                "is accounted by the filter"
            )
        return (
            f"privacy: epsilon {self.spent:.3f} of {self.limit.epsilon:g} at delta "
            f"{self.limit.delta:g} is spent, {self.reserved:.3f} with what is reserved{unused}"
        )


def spent_of(budget: Budget, data_set: bytes) -> Spent:
    """The account of a data set. Raises PolicyError where it has no limit."""
    accounting = AccountantsOfRecord()
    spent = epsilon_of_account(budget, data_set, accounting, only_spent=True)
    reserved = epsilon_of_account(budget, data_set, accounting)
    limit = budget.limit_of(data_set)
    assert limit is not None  # the account would have said so
    return Spent(limit, spent, reserved, budget.never_ran(data_set))
