"""Whether the noise has the size and shape that is accounted, and is drawn anew for every release.

Steps whose units have no gradient release nothing but noise. Of each release the mean square and the
distance from the Gaussian are looked at; over all of them both again, with more power;
then whether two releases, or two halves of one, have anything to do with each other.

Of an adapter of many values each release shows a part of them, evenly spread. Bounds are those of
`offsite.secure.privacy.randomness.goodness`: an honest mechanism fails all of them together once in
a hundred million proofs.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from offsite.emulator.privacy.proof.mechanism import Mechanism
from offsite.emulator.privacy.proof.report import Check
from offsite.secure.privacy.randomness import goodness
from offsite.secure.privacy.randomness.goodness import FALSE_ALARM, Verdict

Doubles = NDArray[np.float64]

ENOUGH = 1 << 15
"""Values with which noise of 0.95 times the scale passes once in 10^9."""
MOST = 1 << 17
"""Values that are looked at of one release."""
_UNIFORM, _TWO_VALUED = 0.05, 0.3
"""Kolmogorov-Smirnov distances from the Gaussian, at least, of distributions with its variance."""
_LEAST_RELEASES, _MOST_RELEASES = 4, 64


def noise_checks(mechanism: Mechanism) -> Iterator[Check]:
    """Yield the checks of one series of releases."""
    scale = mechanism.terms.noise_scale
    wanted = max(_LEAST_RELEASES, min(_MOST_RELEASES, -(-ENOUGH // mechanism.values)))
    releases = [_looked_at(mechanism.noise()) for _ in range(wanted)]
    yield _repeats(releases)
    yield from _sizes(releases, scale)
    yield from _independence(releases, scale)


def _looked_at(release: NDArray[np.float32]) -> Doubles:
    """An even part of a release."""
    return release[:: -(-len(release) // MOST)].astype(np.float64)


def _repeats(releases: Sequence[Doubles]) -> Check:
    different = len({release.tobytes() for release in releases})
    wrong = "a seed, or a keystream that begins again"
    return Check("noise.different", different, len(releases), len(releases), 0.0, wrong)


def _sizes(releases: Sequence[Doubles], scale: float) -> Iterator[Check]:
    alarm = FALSE_ALARM / len(releases)
    together = np.concatenate(releases)
    whole = goodness.variance(together, scale)
    half = goodness.variance_miss(len(together), 0.95)
    yield _check("noise.variance", whole, half, "noise of 0.95 times the scale that is accounted")
    other = goodness.shape_miss(len(together), _UNIFORM)
    yield _check("noise.shape", goodness.shape(together, scale), other, "uniform noise")
    count = len(releases[0])
    worst = _worst([goodness.variance(release, scale, alarm) for release in releases], 1.0)
    half = goodness.variance_miss(count, 0.5, alarm)
    yield _check("noise.variance_of_one", worst, half, "half the noise in one release")
    worst = _worst([goodness.shape(release, scale, alarm) for release in releases], 0.0)
    other = goodness.shape_miss(count, _TWO_VALUED, alarm)
    yield _check("noise.shape_of_one", worst, other, "noise of two values in one release")


def _independence(releases: Sequence[Doubles], scale: float) -> Iterator[Check]:
    pairs = list(pairwise(releases))[::2]  # disjoint, so that products are independent
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    verdict = goodness.correlation(left, right, scale)
    miss = goodness.correlation_miss(len(left), 0.5)
    yield _check("noise.between_releases", verdict, miss, "noise of one release in another")
    half = len(releases[0]) // 2
    if half:
        left, right = (np.concatenate([r[at : at + half] for r in releases]) for at in (0, half))
        verdict = goodness.correlation(left, right, scale)
        miss = goodness.correlation_miss(len(left), 0.5)
        yield _check("noise.within_releases", verdict, miss, "a block of noise that comes again")


def _worst(verdicts: Sequence[Verdict], expected: float) -> Verdict:
    return max(verdicts, key=lambda verdict: abs(verdict.statistic - expected))


def _check(name: str, verdict: Verdict, miss: float, looks_for: str) -> Check:
    return Check(name, verdict.statistic, verdict.least, verdict.most, min(1.0, miss), looks_for)
