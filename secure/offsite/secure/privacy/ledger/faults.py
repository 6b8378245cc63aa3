"""What can be wrong with a ledger, and where.

A fault names the entries it concerns. The first group is found in the bytes and their order, the
second between ledger and checkpoints, the third in what authentic entries say: an owner's own
machine may lie, and these are the lies that its ledger would show.
"""

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What is wrong."""

    # In the bytes and their order.
    CHANGED = "changed"  # a line that nobody signed in this form
    REMOVED = "removed"  # entries are missing between others
    SWAPPED = "swapped"  # entries stand in another order than they were written in
    DUPLICATED = "duplicated"  # the same entry twice
    FORKED = "forked"  # two histories, both signed
    TORN = "torn"  # an append that was cut

    # Between ledger and checkpoints.
    TRUNCATED = "truncated"  # entries of a checkpoint are missing at the end
    REWRITTEN = "rewritten"  # a checkpoint was made of other entries
    UNATTESTED = "unattested"  # a checkpoint that its signers did not sign

    # In what entries say.
    DOUBLE_SPENDING = "double_spending"  # the same steps twice
    REFUND = "refund"  # spent steps were given back
    GAP = "gap"  # steps that no claim covers
    OVERDRAWN = "overdrawn"  # more steps than were reserved or claimed
    OVERSPENT = "overspent"  # more than the limit
    MISSTATED = "misstated"  # an epsilon that accountants do not get
    UNPROVEN = "unproven"  # steps after a start-up proof that failed
    UNKNOWN = "unknown"  # an entry refers to something that is not there
    INCONSISTENT = "inconsistent"  # anything else that entries contradict each other in


@dataclass(frozen=True, slots=True)
class Fault:
    """Entries `first` to `last` (inclusive, by their number) and what is wrong with them."""

    kind: FaultKind
    first: int
    last: int
    problem: str

    def __str__(self) -> str:
        where = f"entry {self.first}"
        if self.last != self.first:
            where = f"entries {self.first} to {self.last}"
        return f"{self.kind.value}: {where}: {self.problem}"
