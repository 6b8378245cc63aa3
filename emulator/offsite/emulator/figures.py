"""Measured numbers that stand in a signed report: each with its error, or with why there is none.

Rule: what was not measured, or means nothing, is None and says so; it is never a 0.
"""

import math
from dataclasses import dataclass

from offsite.emulator.scoring import Accuracy
from offsite.emulator.strict_json import JsonObject

DIGITS = 4
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number and its standard error; where ``value`` is None, ``reason`` says why."""

    value: float | None
    stderr: float | None = None
    reason: str = ""

    @property
    def why(self) -> str:
        """The reason for a sentence that says already that there is no figure."""
        return self.reason.removeprefix(f"{NOT_MEASURED}: ")

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        if self.value is None:
            return {"value": None, "reason": self.reason}
        return {"value": rounded(self.value), "stderr": rounded(self.stderr)}

    def __str__(self) -> str:
        if self.value is None:
            return self.reason
        error = "" if self.stderr is None else f" ± {self.stderr:.3f}"
        return f"{self.value:.3f}{error}"


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """The number as reports show it; None where it is not finite, for JSON has no such number."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, digits)


def accuracy_json(found: Accuracy | None) -> "JsonObject | None":
    """Accuracies with their errors and the number of questions; None for none."""
    if found is None:
        return None
    return {
        "acc": rounded(found.acc),
        "acc_stderr": rounded(found.acc_stderr),
        "acc_norm": rounded(found.acc_norm),
        "acc_norm_stderr": rounded(found.acc_norm_stderr),
        "questions": found.questions,
    }
