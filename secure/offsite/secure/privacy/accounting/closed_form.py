"""Closed form: the exact epsilon of Gaussian mechanisms without sampling.

Gaussians compose to a Gaussian: 1/σ² = Σ uses/σ_i² (Dong, Roth, Su, arXiv 1905.02383v3, Cor 3.3),
whose epsilon is exact by Balle and Wang, arXiv 1805.06530v2, Thm 8. No discretisation, no series:
a check on the other accountants wherever q = 1.
"""

import math
from collections.abc import Sequence

from offsite.secure.privacy.mechanisms import Gaussian, Mechanism, PoissonGaussian


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float | None:
    """Epsilon at delta, or None where something was sampled."""
    if not all(map(_takes_all, mechanisms)):
        return None
    precision = math.fsum(m.uses / m.noise_multiplier**2 for m in mechanisms)
    if precision == 0:
        return 0.0
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def _takes_all(mechanism: Mechanism) -> bool:
    return isinstance(mechanism, Gaussian) or (
        isinstance(mechanism, PoissonGaussian) and mechanism.sampling == 1
    )
