"""The owner's questions as the judge of every round."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class GateScore:
    """Accuracy on the gate questions, 0 to 1, and its standard error."""

    acc: float
    stderr: float
    is_corrected: bool = False
    """Whether the adapter was corrected for compressed blocks (`plug_in_forms`)."""


class Gate(Protocol):
    """Scores the full model, alone and with an adapter; leaves it as it was."""

    def baseline(self) -> GateScore:
        """Of the full model alone."""

    def score(self, adapter: Mapping[str, Tensor]) -> GateScore:
        """Of the full model with the adapter plugged in."""
