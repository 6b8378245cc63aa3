"""How long work tells its caller how far it is, without knowing who listens."""

from collections.abc import Callable

Report = Callable[[int, int], None]
"""Called as `report(done, total)`, in units of the work at hand; `total` may not change."""


def silent(done: int, total: int) -> None:
    """The report of a caller who does not listen."""
