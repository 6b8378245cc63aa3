"""What a coordinator decided in a secure sum, durable before anybody is told.

The signed messages of members lie on the grid and can be read again after a restart; when the
coordinator drew the line under a phase (the roster U1, the members U2, the survivors U3), and who was
asked for which sum under which terms, is in no message. A line that was drawn is drawn at the same place for ever: a second one would be an
equivocation, and the members would rightly refuse to reveal anything.
"""

from collections.abc import Callable
from enum import Enum
from typing import Protocol


class Decision(Enum):
    """Which line."""

    COHORTS = "cohorts"
    ROSTER = "roster"
    MEMBERS = "members"
    SURVIVORS = "survivors"


class Decisions(Protocol):
    """Keeps decisions of one coordinator, by sum."""

    def find(self, sum_id: str, decision: Decision) -> bytes | None: ...

    def keep(self, sum_id: str, decision: Decision, value: bytes) -> None:
        """On the disk when this returns; a second value is refused."""

    def forget(self, attempt_id: str) -> None:
        """Drops what was decided in an attempt that is over, and in its sums."""


def decided(
    decisions: Decisions, sum_id: str, decision: Decision, decide: Callable[[], bytes]
) -> bytes:
    """The decision that was taken before, or `decide()`, kept before it is returned."""
    found = decisions.find(sum_id, decision)
    if found is None:
        found = decide()
        decisions.keep(sum_id, decision, found)
    return found
