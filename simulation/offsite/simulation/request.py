"""What is to be simulated, checked as a whole before anything is loaded."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from offsite.coordinator.config_problems import Problems
from offsite.coordinator.config_strategy import StrategyName
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.secure import limits
from offsite.secure.aggregation.round_config import MOST_MEMBERS
from offsite.simulation.grouping import LABEL
from offsite.simulation.partition import PartitionKind
from offsite.simulation.stacks import AUTO
from offsite.simulation.weather import Weather

MOST_STACKED = 1024


class SumKind(StrEnum):
    """How a cohort's updates are added up."""

    SECURE = "secure"
    """By the protocol, message for message."""
    VISIBLE = "visible"
    """In the clear: the same means, faster; ways that need single updates need this."""


@dataclass(frozen=True, slots=True)
class Division:
    """How the data are divided among clients."""

    clients: int = 100
    kind: PartitionKind = PartitionKind.IID
    alpha: float = 0.3
    by: str = LABEL


@dataclass(frozen=True, slots=True)
class Request:
    """One simulation: the same clients, data and weather for every strategy."""

    data: Path
    division: Division = field(default_factory=Division)
    sample: int = 0
    """Clients asked in a round; 0: all."""
    strategies: tuple[StrategyName, ...] = ()
    """Empty: that of the settings."""
    weather: Weather = field(default_factory=Weather)
    step_s: float = 0.0
    """Simulated seconds of an optimiser step at a usual client; 0: such that a client of median
    size and speed needs a third of the deadline."""
    epsilon: float | None = None
    delta: float = 1e-5
    sums: SumKind = SumKind.SECURE
    lora: LoraAggregation | None = None
    """None: that of the settings."""
    ranks: tuple[int, ...] = ()
    """LoRA ranks, given to the clients in turn; empty: that of the release."""
    stack: int = 1
    """Clients tuned at once; `AUTO`: measured."""
    seed: int = 0

    def __post_init__(self) -> None:
        problems = Problems()
        problems.outside("--clients", self.division.clients, 2, limits.CLIENTS)
        problems.outside("--sample", self.sample, 0, self.division.clients)
        problems.outside("--stack", self.stack, AUTO, MOST_STACKED)
        problems.outside("--seed", self.seed, 0, 2**62)
        problems.unless(self.step_s >= 0, f"--step-s: expected 0 or more, found {self.step_s}")
        problems.unless(
            len(set(self.strategies)) == len(self.strategies),
            "--strategy: expected each strategy once",
        )
        hidden = self.sums is SumKind.SECURE
        special = self.lora not in (None, LoraAggregation.AVERAGE)
        problems.unless(
            not (hidden and (special or self.ranks)),
            "--lora and --ranks: expected --sums visible beside them: a secure sum shows no single "
            "update",
        )
        problems.unless(
            not (self.ranks and self.stack != 1),
            "--ranks: expected --stack 1: clients of several ranks do not fit into one stack",
        )
        problems.report()

    @property
    def asked(self) -> int:
        """Clients of a round."""
        return self.sample or self.division.clients

    @property
    def fewest_cohorts(self) -> int:
        """So that no sum is larger than the protocol takes."""
        return -(-self.asked // MOST_MEMBERS)
