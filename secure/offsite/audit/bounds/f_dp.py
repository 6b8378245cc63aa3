"""The f-DP one-run bound: the guesses test a whole trade-off curve, not one (epsilon, delta).

Of m canaries `guessed` were guessed and `right` rightly. If the mechanism is f-DP, the probability
of as many right guesses obeys a recursion over the count i of right guesses, from `right` down:

    h, r start at   significance (guessed - right) / m,   significance right / m
    h <- max(h, least(r))          r <- r + i / (guessed - i) (h' - h)

and the curve is rejected when r + h exceeds guessed / m in the end.

Which curve is the question. `f_dp_rejects` takes any: with the accountant's own curve of a claimed
mechanism it tests the claim, without further assumption. `gaussian_mu` and `gaussian_epsilon` state
the result as the largest Gaussian curve that is rejected, and what epsilon that one has at delta:
the usual form, exact where the mechanism's curve is Gaussian (full batches), and in the general
case a statement about that family. `approximate_epsilon` is the form without the family.

Source: Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run",
arXiv 2410.22235v1, algorithm "audit_rh_with_cap".
"""

from offsite.audit.bounds.counts import Guesses, Level
from offsite.audit.bounds.search import largest_rejected, least_rejecting
from offsite.audit.bounds.trade_off import ApproximateTradeOff, GaussianTradeOff, TradeOff


def f_dp_rejects(curve: TradeOff, guesses: Guesses, significance: float) -> bool:
    """Whether a mechanism with this curve would allow so many right guesses too rarely."""
    m, guessed, right = guesses.canaries, guesses.guessed, guesses.right
    r, h = significance * right / m, significance * (guessed - right) / m
    for i in range(right - 1, -1, -1):
        grown = max(h, curve.least(r))
        if grown == h:  # then neither of them ever changes again
            break
        r, h = min(1.0, r + i / (guessed - i) * (grown - h)), grown
    return r + h > guessed / m


def f_dp_p_value(curve: TradeOff, guesses: Guesses) -> float:
    """The least significance at which the curve is rejected, to 1e-3 of itself; 1 if at none."""
    return least_rejecting(lambda significance: f_dp_rejects(curve, guesses, significance))


def gaussian_mu(guesses: Guesses, significance: float) -> float:
    """The largest mu whose Gaussian curve is rejected, 0 if none."""
    return largest_rejected(lambda mu: f_dp_rejects(GaussianTradeOff(mu), guesses, significance))


def gaussian_epsilon(guesses: Guesses, level: Level) -> float:
    """The epsilon at delta of the largest Gaussian curve that is rejected.

    Guarantees: for a Gaussian mechanism it exceeds the true epsilon with a probability of at most
    the significance (`test_the_f_dp_bound_covers_a_gaussian_mechanism`).
    """
    return GaussianTradeOff(gaussian_mu(guesses, level.significance)).epsilon(level.delta)


def approximate_epsilon(guesses: Guesses, level: Level) -> float:
    """The largest epsilon for which (epsilon, delta)-DP, and nothing more, is rejected."""
    return largest_rejected(
        lambda epsilon: f_dp_rejects(
            ApproximateTradeOff(epsilon, level.delta), guesses, level.significance
        )
    )
