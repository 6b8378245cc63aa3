"""The settings of aggregation: `[strategy]`.

Defaults are for fine-tuning, where a round moves a weight by about 1e-3 and a campaign has three to
some tens of rounds; Flower's are for training from scratch over hundreds:

- `server_learning_rate` of FedAdam and FedYogi is 1e-3 and `tau` 1e-5 (Flower: 0.1 and 0.01, and
  1e-3). Their step is about the rate itself for every weight, whatever the update: with Flower's the
  first round would destroy the weights. A tau above the updates turns adaptation off.
- `server_momentum` is 0.5 (Hsu et al.: 0.9). Momentum m multiplies a steady direction by 1/(1 - m)
  and takes about as many rounds to get there: twice after two rounds suits a short campaign, ten
  times after ten does not.
- `proximal_mu` is 0.1. A weight that has drifted by 1e-3 is pulled back with 1e-4, a tenth of what
  a value's gradient is where a million of them have norm 1. FedProx tries 1, 0.1, 0.01 and 0.001.
- `trim_share` 0.2 and one hostile cohort are what five cohorts allow.

What a strategy needs of a campaign is in `strategies/fit.py`, what each does in docs/strategies.md.
"""

import enum
import math
from dataclasses import dataclass
from typing import Annotated

from offsite.coordinator.config_problems import Problems
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.rounds.plan import MAX_PROXIMAL_MU

MAX_SERVER_LEARNING_RATE = 100.0
MAX_COHORTS = 10**6


class StrategyName(enum.Enum):
    """Flower's strategies."""

    FEDAVG = "fedavg"
    FEDAVGM = "fedavgm"
    FEDPROX = "fedprox"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"
    FEDMEDIAN = "fedmedian"
    FEDTRIMMEDAVG = "fedtrimmedavg"
    KRUM = "krum"
    MULTIKRUM = "multikrum"
    BULYAN = "bulyan"


SERVER_LEARNING_RATES = {
    StrategyName.FEDAVGM: 1.0,
    StrategyName.FEDADAM: 1e-3,
    StrategyName.FEDYOGI: 1e-3,
}
"""Where no other is set; the others have none."""
NAMES = ", ".join(name.value for name in StrategyName)


@dataclass(frozen=True, slots=True)
class StrategySection:
    """How the means of cohorts become the next adapter."""

    name: Annotated[StrategyName, f"one of {NAMES}"] = StrategyName.FEDAVG
    server_learning_rate: Annotated[
        float | None,
        "step on the server (empty: 1 for fedavgm, 1e-3 for fedadam and fedyogi; others have none)",
    ] = None
    server_momentum: Annotated[float, "fedavgm: share of the last step in the next one"] = 0.5
    beta_1: Annotated[float, "fedadam, fedyogi: memory of the first moment"] = 0.9
    beta_2: Annotated[float, "fedadam, fedyogi: memory of the second moment"] = 0.99
    tau: Annotated[float, "fedadam, fedyogi: updates far below it are not scaled up"] = 1e-5
    proximal_mu: Annotated[
        float, "fedprox: pull towards the round's adapter in every step at the edges"
    ] = 0.1
    trim_share: Annotated[
        float, "fedtrimmedavg: share of the cohorts that is cut off at either end, value by value"
    ] = 0.2
    hostile_cohorts: Annotated[int, "krum, multikrum, bulyan: cohorts that may be hostile (f)"] = 1
    chosen_cohorts: Annotated[
        int, "multikrum: cohorts averaged (0: as many as can be vouched for, cohorts - f - 2)"
    ] = 0
    lora_aggregation: Annotated[
        LoraAggregation,
        "average, or in `coordinator simulate`, where updates are seen: residual, stack, padded, "
        "slices",
    ] = LoraAggregation.AVERAGE

    def __post_init__(self) -> None:
        found = Problems()
        if self.server_learning_rate is not None:
            found.unless(
                0 < self.server_learning_rate <= MAX_SERVER_LEARNING_RATE,
                "server_learning_rate: expected more than 0, up to "
                f"{MAX_SERVER_LEARNING_RATE:g}, found {self.server_learning_rate}",
            )
            found.unless(
                self.name in SERVER_LEARNING_RATES,
                f"server_learning_rate: {self.name.value} has none; leave it empty, or choose "
                f"{', '.join(name.value for name in SERVER_LEARNING_RATES)}",
            )
        for name in ("server_momentum", "beta_1", "beta_2"):
            value = getattr(self, name)
            found.unless(0 <= value < 1, f"{name}: expected 0 or more, below 1, found {value}")
        found.not_positive("tau", self.tau)
        found.unless(
            0 < self.proximal_mu <= MAX_PROXIMAL_MU,
            f"proximal_mu: expected more than 0, up to {MAX_PROXIMAL_MU:g}, found "
            f"{self.proximal_mu}; without a pull it is fedavg",
        )
        found.unless(
            0 < self.trim_share < 0.5,
            f"trim_share: expected more than 0, below 0.5, found {self.trim_share}",
        )
        found.outside("hostile_cohorts", self.hostile_cohorts, 0, MAX_COHORTS)
        found.outside("chosen_cohorts", self.chosen_cohorts, 0, MAX_COHORTS)
        found.report()

    @property
    def server_rate(self) -> float:
        """The step on the server; NaN for strategies that have none."""
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        return SERVER_LEARNING_RATES.get(self.name, math.nan)

    @property
    def plan_proximal_mu(self) -> float:
        """What a round's plan says; 0 for all but FedProx."""
        return self.proximal_mu if self.name is StrategyName.FEDPROX else 0.0
