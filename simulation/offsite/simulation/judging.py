"""The owner's gate as a simulation uses it, and what is noted when it speaks.

The full model is scored once for all strategies. Each scoring ends a round, so it is here that the
real time of rounds and what privacy they have cost are noted."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from offsite.coordinator.gate import GateScore
from offsite.coordinator.plug_in import ModelGate
from offsite.simulation.lora_ways import LoraWay


@dataclass(slots=True, eq=False)
class Baseline:
    """The gate of the full model, scored when first asked for."""

    gate: ModelGate
    _score: GateScore | None = None

    def score(self) -> GateScore:
        if self._score is None:
            self._score = self.gate.baseline()
        return self._score


@dataclass(frozen=True, slots=True)
class Noted:
    """What a scoring ended."""

    seconds: float
    """Real ones, since the scoring before."""
    epsilon: float | None
    """The largest that any client has spent; None: nobody keeps account."""


@dataclass(slots=True, eq=False)
class SimulatedGate:
    """See `Gate`; of one campaign."""

    baseline_of: Baseline
    spent: Callable[[], float | None]
    way: LoraWay | None = None
    noted: list[Noted] = field(default_factory=list)
    round: int = 0
    """The round that is under way."""
    _since: float = field(default_factory=time.monotonic)

    def baseline(self) -> GateScore:
        """Of the full model."""
        score = self.baseline_of.score()
        self._since = time.monotonic()
        return score

    def score(self, adapter: Mapping[str, Tensor]) -> GateScore:
        """Of the full model with the adapter, and with what else the round makes of its weights."""
        gate, way = self.baseline_of.gate, self.way
        inside = (
            nullcontext()
            if way is None
            else way.frozen.inside(gate.model, way.frozen.of(self.round))
        )
        with inside:
            score = gate.score(adapter)
        now = time.monotonic()
        self.noted.append(Noted(now - self._since, self.spent()))
        self._since = now
        return score
