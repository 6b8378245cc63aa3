"""What privacy parameters mean in words, and in what an attacker could at most guess.

Whoever knows all other rows and was undecided whether one row was used can become at most
e^eps / (1 + e^eps) sure of it, but for an event of probability delta.

Source: Kairouz, Oh and Viswanath 2015 (arXiv 1311.0776), theorem 2.1, for the region of error rates
that (epsilon, delta) allows. The vocabulary is that of NIST SP 800-226.
"""

import math

from offsite.secure.privacy.units import Unit

MOST_LOG = 700.0
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def most_posterior(epsilon: float, prior: float) -> float:
    """The most sure that somebody can become who was ``prior`` sure that a unit was in."""
    if prior >= 1:
        return 1.0
    odds = prior / (1 - prior) * math.exp(min(epsilon, MOST_LOG))
    return odds / (1 + odds)


def most_true_positives(epsilon: float, delta: float, false_positives: float) -> float:
    """The largest true positive rate that (epsilon, delta) allows at a false positive rate."""
    if epsilon >= MOST_LOG:
        return 1.0
    steep = math.exp(epsilon) * false_positives + delta
    flat = 1 - math.exp(-epsilon) * (1 - delta - false_positives)
    return max(0.0, min(1.0, steep, flat))


def most_advantage(epsilon: float, delta: float) -> float:
    """The largest true minus false positive rate that (epsilon, delta) allows."""
    return math.tanh(min(epsilon, MOST_LOG) / 2) * (1 - delta) + delta


def unit_words(unit: Unit) -> str:
    """Whose presence is hidden."""
    return {
        Unit.RECORD: "one record: a single row of the data file. Somebody with several rows is "
        "protected less, row by row",
        Unit.PERSON: "one person: all rows with the same value of the column that names the person",
    }[unit]


def epsilon_words(epsilon: float) -> str:
    """One sentence about the strength of an epsilon."""
    right = most_posterior(epsilon, 0.5)
    return (
        f"Somebody who knows all other rows and was undecided (50:50) whether one was used can "
        f"come to be at most {percent(right)} sure, whatever else they know or do later."
    )


def percent(share: float) -> str:
    """With as many digits as matter near 1, and never rounded to all or nothing."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    if share < 0.999 or share == 1.0:
        return f"{100 * share:.1f} %"
    digits = min(6, math.ceil(-math.log10(max(1 - share, 1e-9))))
    cut = math.floor(100 * share * 10**digits) / 10**digits
    return f"{cut:.{digits}f} %"


def small(number: float) -> str:
    """A delta: 10⁻⁵, 2.5 · 10⁻⁶."""
    if number >= 0.001 or number == 0:
        return f"{number:g}"
    digits, power = f"{number:.2e}".split("e")
    raised = f"10{str(int(power)).translate(_RAISED)}"
    return raised if float(digits) == 1 else f"{float(digits):g} · {raised}"
