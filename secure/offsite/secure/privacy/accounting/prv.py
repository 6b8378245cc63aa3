"""PRV accountant: the cross-check from both sides, by Microsoft's prv_accountant.

Gopi, Lee, Wutschitz, NeurIPS 2021, arXiv 2106.02848v3: the privacy random variable is discretised
on a mesh (Thm 5.5) over a domain (remark 5.6) that bound the error of epsilon by 0.01, composed by
FFT, and read off as (lower, estimate, upper).

Discretiser, composer and bounds are the package's. The random variables and their means are ours:
the package knows no truncated sampling, and its mean comes from an adaptive quadrature that steps
over the narrow range near ln(1 - q), which moved epsilon by 0.0035 at (0.73, 0.1, 30 steps), and
that fails above an epsilon of about 50. A test holds our distribution function against its own.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import PolicyError
from offsite.secure.privacy.accounting import rdp
from offsite.secure.privacy.accounting.composition import directions
from offsite.secure.privacy.accounting.dominating import Pair, pairs_of
from offsite.secure.privacy.mechanisms import Mechanism

if TYPE_CHECKING:
    from prv_accountant.domain import Domain

EPSILON_ERROR: Final = 0.01
DELTA_SHARE: Final = 1e-3
"""Error of delta, as a share of delta."""
_MOST_CELLS: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class Bounds:
    """Epsilon from below, as estimated, and from above."""

    lower: float
    estimate: float
    upper: float


@lru_cache(maxsize=256)
def epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> Bounds:
    """Epsilon at delta of a merged history, zeros for none.

    Raises:
        PolicyError: the mesh would not fit into memory, or is too coarse for so small a delta.
    """
    if not mechanisms:
        return Bounds(0.0, 0.0, 0.0)
    found = [_epsilon(history, delta) for history in directions(mechanisms)]
    return max(found, key=lambda bounds: bounds.upper)


def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> Bounds:
    from prv_accountant.composers import Heterogeneous
    from prv_accountant.discretisers import CellCentred

    domain = _domain(mechanisms, delta)
    cells = [CellCentred().discretise(_Variable(m.repeated(1), domain), domain) for m in mechanisms]
    total = Heterogeneous(cells).compute_composition([m.uses for m in mechanisms])
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # logarithms of cells that are never read
            found = total.compute_epsilon(delta, delta * DELTA_SHARE, EPSILON_ERROR)
    except (ValueError, RuntimeError, IndexError) as error:
        raise PolicyError(
            f"PRV cannot compute an epsilon at delta {delta:g} ({error}), so the figure cannot be "
            "cross-checked: choose a larger delta"
        ) from None
    # Where delta covers all there is to tell, its formula falls below 0; an epsilon does not.
    return Bounds(*(max(0.0, float(bound)) for bound in found))


def _domain(mechanisms: Sequence[Mechanism], delta: float) -> "Domain":
    """Half-width by RDP (remark 5.6), mesh by theorem 5.5."""
    from prv_accountant.domain import Domain
    from scipy.fft import next_fast_len

    uses = sum(m.uses for m in mechanisms)
    error = delta * DELTA_SHARE
    each = (rdp.epsilon([m.repeated(1)], error / 8 / uses) for m in mechanisms)
    reach = max(rdp.epsilon(mechanisms, error / 4), *each, EPSILON_ERROR) + 3
    mesh = EPSILON_ERROR / math.sqrt(uses / 2 * math.log(12 / error))
    if 2 * reach / mesh > _MOST_CELLS:
        raise PolicyError(
            f"an epsilon near {reach:.0f} over {uses} uses is beyond what PRV can cross-check: "
            "use more noise or fewer steps"
        )
    # As `Domain.create_aligned`, but of a length that an FFT is fast at. The composer needs zero
    # to be the last cell of the first half.
    half = next_fast_len(math.ceil(reach / mesh) + 1, real=True)
    return Domain(-(half - 1) * mesh, half * mesh, 2 * half)


class _Variable:
    """The loss of one use, cut to the domain: what `CellCentred` discretises."""

    pm_inf = 0.0

    def __init__(self, once: Mechanism, domain: "Domain") -> None:
        self._pairs = pairs_of(once)
        self._least, self._most = float(domain.t_min()), float(domain.t_max())

    def mean(self) -> float:
        """Under P. What the cut removes is below the error of delta, divided by 8 and the uses."""
        return sum(pair.weight * pair.mean_loss() for pair in self._pairs)

    def probability(
        self, low: NDArray[np.longdouble], high: NDArray[np.longdouble]
    ) -> NDArray[np.float64]:
        """Of cells [low, high], which lie side by side: every edge is computed once."""
        edges = np.append(low, high[-1:]).astype(np.float64)
        values = cdf(self._pairs, np.clip(edges, self._least, self._most))
        cells: NDArray[np.float64] = np.diff(values) / (values[-1] - values[0])
        return cells


def cdf(pairs: tuple[Pair, ...], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(loss ≤ t) for an outcome drawn from P."""
    total = np.zeros_like(losses)
    for pair in pairs:
        total += pair.weight * pair.upper_cdf(pair.point_of(losses))
    return total
