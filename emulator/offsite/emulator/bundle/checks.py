"""The checks of a bundle, by name, and a list that records how each of them ended."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from offsite.secure.errors import OffsiteError


class Outcome(Enum):
    """How a check ended. What comes after a failed one is not run."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One check that was run, or could not be, and why."""

    name: str
    outcome: Outcome
    detail: str = ""


Observer = Callable[[Check], None]


def unobserved(check: Check) -> None:
    """The observer of a caller who wants the verdict alone."""


class Checklist:
    """Tells an observer how every step ends."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Runs one check; the error that ends it goes on."""
        try:
            yield
        except OffsiteError as error:
            self._observe(Check(name, Outcome.FAILED, str(error)))
            raise
        self._observe(Check(name, Outcome.PASSED))

    def skip(self, name: str, reason: str) -> None:
        """Records a check for which the caller gave nothing to compare with."""
        self._observe(Check(name, Outcome.SKIPPED, reason))
