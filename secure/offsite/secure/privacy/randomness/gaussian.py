"""Gaussian noise in double precision, added to a sum and rounded to a public grid.

Box and Muller (1958), 128 bits of keystream for two values:

    r = sqrt(-2 ln u),   x = r cos(2π v),   y = r sin(2π v)

v has 53 bits; u has 75, namely a word of 64 and the 11 that v leaves over. With 53 bits the radius
would end at 8.6, and a run of 10^4 steps of 10^7 values looks beyond that: the tail that is missing
adds up to 6e-6, the size of a delta. With 75 bits the radius ends at 10.3 and the sum is 1e-12.
There is no rejection, so the work does not depend on what is drawn.

*Grid.* Doubles are dense near zero and sparse far out, and the low bits of sum + noise tell the sum
(Mironov 2012; Jin et al., arXiv 2112.05307, against Opacus). So the release is rounded to whole
multiples of 2^-k, k from the scale alone:

    release = rint( (sum + noise) · 2^k ) / 2^k,     2^-k = 2^floor(log2 scale) / 2^16

Rounding is post-processing: it costs no privacy, and nor does the division that follows. A step of
the grid spans 2^36 doubles of the noise and adds at most 2^-35 to the variance. This removes the
known attacks; it is no proof that doubles are real numbers, which only noise on integers would give.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.randomness.uniform import Words64, WordSource, fractions

Doubles = NDArray[np.float64]
Values = NDArray[np.float32]

GRID_BITS_BELOW_SCALE: Final = 16
_SPARE_BITS: Final = 11  # of a word of 64, below the 53 of a fraction
TAIL: Final = math.sqrt(2 * (64 + _SPARE_BITS + 1) * math.log(2))
"""The largest radius, 10.26: a true Gaussian leaves it once in 10^24."""
_BLOCK: Final = 1 << 16
"""Values at a time: half a mebibyte, so that block and keystream stay in a core's cache."""


def noise_into(out: Doubles, scale: float, stream: WordSource) -> None:
    """Writes independent N(0, scale²) over `out`, float64 (P,), in blocks.

    Raises:
        ConfigError: another dtype or shape, or a scale that is not above 0 and finite.
    """
    _check_scale(scale)
    if out.dtype != np.float64 or out.ndim != 1:
        raise ConfigError("noise: expected a vector of float64, found another array")
    for start in range(0, len(out), _BLOCK):
        block = out[start : start + _BLOCK]
        pairs = (len(block) + 1) // 2
        words = stream.words(2 * pairs)
        radius, angle = _polar(words[:pairs], words[pairs:])
        radius *= scale
        np.multiply(radius, np.cos(angle), out=block[:pairs])
        rest = len(block) - pairs
        np.multiply(radius[:rest], np.sin(angle[:rest]), out=block[pairs:])


def _polar(radius_words: Words64, angle_words: Words64) -> tuple[Doubles, Doubles]:
    spare = (angle_words & np.uint64((1 << _SPARE_BITS) - 1)).astype(np.float64)
    uniform = radius_words.astype(np.float64)
    uniform += (spare + 0.5) * 2.0**-_SPARE_BITS
    uniform *= 2.0**-64  # in [2^-76, 1]
    return np.sqrt(-2.0 * np.log(uniform)), fractions(angle_words) * (2.0 * math.pi)


def grid_bits(scale: float) -> int:
    """k of the public grid 2^-k for noise of this scale; negative for a scale beyond 2^16."""
    _check_scale(scale)
    return GRID_BITS_BELOW_SCALE + 1 - math.frexp(scale)[1]


def noised_into(
    release: Values, total: Values, scale: float, divisor: float, stream: WordSource
) -> None:
    """release = round_to_grid(total + N(0, scale²)) / divisor, in blocks and in float64.

    Args:
        release: float32 (P,), written over; may be `total` itself.
        total: float32 (P,), the sum of clipped gradients.
        divisor: a constant, above 0: the expected size of a batch.

    Raises:
        ConfigError: arrays or numbers of another kind.
        PolicyError: `total` is not finite; nothing of it was released.

    Guarantees: every value times `divisor` is a whole multiple of 2^-k up to float32, and no zero
    has a sign (`test_a_release_lies_on_the_grid`).
    """
    _check_vectors(release, total)
    if not (math.isfinite(divisor) and divisor > 0):
        raise ConfigError(f"noise: expected a divisor above 0, found {divisor}")
    if not np.isfinite(total).all():
        raise PolicyError("noise: expected a finite sum, found others; nothing is released")
    steps = math.ldexp(1.0, grid_bits(scale))
    noise = np.empty(min(_BLOCK, len(total)))
    for start in range(0, len(total), _BLOCK):
        block = noise[: min(_BLOCK, len(total) - start)]
        noise_into(block, scale, stream)
        block += total[start : start + len(block)]
        block *= steps
        np.rint(block, out=block)
        block += 0.0  # -0 would tell on which side of 0 the sum was
        block /= steps
        block /= divisor
        release[start : start + len(block)] = block


def _check_scale(scale: float) -> None:
    if not 2.0**-500 < scale < 2.0**500:
        raise ConfigError(f"noise: expected a scale above 0 and finite, found {scale}")


def _check_vectors(release: Values, total: Values) -> None:
    for vector in (release, total):
        if vector.dtype != np.float32 or vector.ndim != 1:
            raise ConfigError("noise: expected vectors of float32, found another array")
    if len(release) != len(total):
        raise ConfigError(f"noise: expected {len(total)} values, found {len(release)}")
