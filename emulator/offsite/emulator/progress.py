"""How long work tells its caller how far it is, without knowing who listens."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Report = Callable[[int, int], None]
"""Called as `report(done, total)`, in units of the work at hand; `total` may not change."""


def silent(done: int, total: int) -> None:
    """The report of a caller who does not listen."""


Progress = Callable[[str], AbstractContextManager[Report]]
"""Shows a piece of work under a label for as long as it lasts; `Terminal.progress` is one."""


def unseen(label: str) -> AbstractContextManager[Report]:
    """The progress of work that nobody watches."""
    return nullcontext(silent)
