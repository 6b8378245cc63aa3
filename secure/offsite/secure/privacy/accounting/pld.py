"""PLD accountant: epsilon as reported, by Google's dp_accounting.

The privacy loss distribution of every mechanism is discretised at 1e-4 by connect-the-dots
(Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, PoPETs 2022, arXiv 2207.04380), pessimistically, and
composed by FFT; both directions, with the unit or without it first, are followed and the worse counts.

Composed distributions are cached, since a budget is recomputed after every claim: a campaign
changes only the last exponent of its history. A cache holds tens of MB, not more.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from offsite.secure.privacy.accounting.composition import directions
from offsite.secure.privacy.accounting.dominating import rate_above, truncation
from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
)

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

INTERVAL: Final = 1e-4
"""Of the figure of record."""
FINE_INTERVAL: Final = 1e-5
"""Where discretisation at `INTERVAL` exceeds what RDP proves (tiny epsilons)."""


@lru_cache(maxsize=2048)
def epsilon(mechanisms: tuple[Mechanism, ...], delta: float, interval: float = INTERVAL) -> float:
    """Epsilon at delta of a merged history, 0 for none; infinite where delta is out of reach."""
    if not mechanisms:
        return 0.0
    return max(
        float(_composed(history, interval).get_epsilon_for_delta(delta))
        for history in directions(mechanisms)
    )


def _composed(mechanisms: tuple[Mechanism, ...], interval: float) -> "PrivacyLossDistribution":
    total = _beginning(mechanisms[:-1], interval)
    last = _repeated(mechanisms[-1], interval)
    return last if total is None else total.compose(last)


@lru_cache(maxsize=4)
def _beginning(
    mechanisms: tuple[Mechanism, ...], interval: float
) -> "PrivacyLossDistribution | None":
    """All but the last of a history, which stays while a campaign runs."""
    total = None
    for mechanism in mechanisms:
        next_one = _repeated(mechanism, interval)
        total = next_one if total is None else total.compose(next_one)
    return total


@lru_cache(maxsize=8)
def _repeated(mechanism: Mechanism, interval: float) -> "PrivacyLossDistribution":
    from dp_accounting.pld import privacy_loss_distribution as pld

    if isinstance(mechanism, Gaussian):  # composes to one, exactly
        sigma = mechanism.noise_multiplier / math.sqrt(mechanism.uses)
        return pld.from_gaussian_mechanism(sigma, value_discretization_interval=interval)
    once = _once(mechanism.repeated(1), interval)
    return once.self_compose(mechanism.uses) if mechanism.uses > 1 else once


@lru_cache(maxsize=8)
def _once(
    once: PoissonGaussian | TruncatedPoissonGaussian, interval: float
) -> "PrivacyLossDistribution":
    from dp_accounting.pld import privacy_loss_distribution as pld

    if isinstance(once, TruncatedPoissonGaussian) and truncation(once)[0] > 0:
        return pld.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=once.units,
            sampling_probability=rate_above(once.sampling),
            truncated_batch_size=once.cap,
            noise_multiplier=once.noise_multiplier,
            value_discretization_interval=interval,
        )
    return pld.from_gaussian_mechanism(
        once.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=rate_above(once.sampling),
    )
