"""Bounds from runs that are independent: one canary a run, in or out by a fair coin, many runs.

    Clopper-Pearson   epsilon >= ln((TPR - delta) / FPR), and the same for the opposite guess
    Gaussian DP       mu >= Phi^-1(1 - FPR) - Phi^-1(FNR), then mu's epsilon at delta

with every rate replaced by its one-sided Clopper-Pearson limit at half the significance. The second
is a statement about the Gaussian family, tight for full batches. Neither may be used on the many
canaries of one run: those are not independent.

Source: Nasr et al., "Tight Auditing of Differentially Private Machine Learning", USENIX Security
2023, arXiv 2302.07956v1, sections 4 and 5; Clopper, Pearson, Biometrika 26 (1934).
"""

import math

from scipy.special import betaincinv, ndtri

from offsite.audit.bounds.counts import Level, Rates
from offsite.audit.bounds.search import least_rejecting
from offsite.audit.bounds.trade_off import GaussianTradeOff, TradeOff
from offsite.secure.errors import ConfigError


def clopper_pearson_upper(successes: int, trials: int, significance: float) -> float:
    """The rate above which so few successes are rarer than `significance`."""
    if not 0 <= successes <= trials or trials < 1:
        raise ConfigError(
            f"audit: expected from 0 to all of the trials, found {successes} of {trials}"
        )
    if successes == trials:
        return 1.0
    return float(betaincinv(successes + 1, trials - successes, 1 - significance))


def clopper_pearson_lower(successes: int, trials: int, significance: float) -> float:
    """The rate below which so many successes are rarer than `significance`."""
    return 1.0 - clopper_pearson_upper(trials - successes, trials, significance)


def clopper_pearson_epsilon(rates: Rates, level: Level) -> float:
    """The largest epsilon that the rates reject at `level`, 0 if none.

    Guarantees: exceeds the epsilon of an (epsilon, delta)-DP mechanism with a probability of at
    most the significance (`test_the_clopper_pearson_bound_covers_randomised_response_exactly`).
    """
    missed, accused = _limits(rates, level.significance)
    return max(
        _log_ratio(1 - missed - level.delta, accused),
        _log_ratio(1 - accused - level.delta, missed),
        0.0,
    )


def independent_gaussian_mu(rates: Rates, significance: float) -> float:
    """The largest mu whose Gaussian curve the rates reject, 0 if none."""
    missed, accused = _limits(rates, significance)
    return max(0.0, -float(ndtri(accused)) - float(ndtri(missed)))


def independent_gaussian_epsilon(rates: Rates, level: Level) -> float:
    """The epsilon at delta of the largest Gaussian curve that the rates reject."""
    return GaussianTradeOff(independent_gaussian_mu(rates, level.significance)).epsilon(level.delta)


def rates_reject(curve: TradeOff, rates: Rates, significance: float) -> bool:
    """Whether a mechanism with this curve would show such rates too rarely."""
    missed, accused = _limits(rates, significance)
    return missed < curve.least(1 - accused)


def rates_p_value(curve: TradeOff, rates: Rates) -> float:
    """The least significance at which the curve is rejected, to 1e-3 of itself; 1 if at none."""
    return least_rejecting(lambda significance: rates_reject(curve, rates, significance))


def _limits(rates: Rates, significance: float) -> tuple[float, float]:
    """Upper limits of the false-negative and the false-positive rate."""
    missed = rates.inside - rates.inside_found
    return (
        clopper_pearson_upper(missed, rates.inside, significance / 2),
        clopper_pearson_upper(rates.outside_accused, rates.outside, significance / 2),
    )


def _log_ratio(over: float, under: float) -> float:
    return math.log(over / under) if over > 0 else -math.inf
