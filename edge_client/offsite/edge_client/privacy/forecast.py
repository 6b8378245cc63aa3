"""What a campaign at some epsilon would look like, before anything is spent.

    noise     the least with which all steps stay within epsilon, in clip norms, what these records were
              used for before included
    signal    of one step, at best: batch · C against σ · C · √P, P values of the adapter
    whole     the same over the campaign: √T times as much, since noise averages out
    found     of 100 rows, how many the best guesser finds at one false alarm in 100

`whole` is a rule of thumb for utility, not a promise: at 10 and more tuning hardly notices the noise,
around 1 it learns the coarse things, at 0.1 it learns nothing. Measured campaigns stand in
`docs/privacy.md`. A smaller adapter, a larger batch and more rows raise it; more steps do so slowly.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.what_if import WhatIf

_FALSE_ALARMS = 0.01


@dataclass(frozen=True, slots=True)
class Intended:
    """What one means to do."""

    units: int
    batch: int
    steps: int
    """Of the whole campaign, spare ones included."""
    values: int | None
    """P, where a release is at hand."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one epsilon; None where no useful noise keeps it."""

    epsilon: float
    noise: float | None
    step_signal: float | None
    campaign_signal: float | None
    found_at_one_percent: float

    def document(self) -> dict[str, float | None]:
        """For `--json`."""
        return {
            "epsilon": self.epsilon,
            "noise_multiplier": self.noise,
            "signal_to_noise_of_a_step": self.step_signal,
            "signal_to_noise_of_the_campaign": self.campaign_signal,
            "found_at_one_percent_false_alarms": self.found_at_one_percent,
        }


def forecast(limit: PrivacyLimit, intended: Intended, account: WhatIf) -> Forecast:
    """What this limit would mean for it."""
    found = found_at(limit.epsilon, limit.delta, _FALSE_ALARMS)
    sampling = Fraction(intended.batch, intended.units)
    noise = account.noise(limit, sampling, intended.steps)
    if noise is None:
        return Forecast(limit.epsilon, None, None, None, found)
    if intended.values is None:
        return Forecast(limit.epsilon, noise, None, None, found)
    step = intended.batch / (noise * math.sqrt(intended.values))
    return Forecast(limit.epsilon, noise, step, step * math.sqrt(intended.steps), found)


def found_at(epsilon: float, delta: float, false_alarms: float) -> float:
    """The most members that anybody finds at this rate of false alarms, under Gaussian DP.

    Source: Dong, Roth and Su 2022 (arXiv 1905.02383), equation 6 and corollary 2.13.
    """
    from dp_accounting import get_sigma_gaussian

    normal, mu = NormalDist(), 1 / get_sigma_gaussian(epsilon, delta)
    return normal.cdf(normal.inv_cdf(false_alarms) + mu)
