"""Updates as integers of the ring of 2^32, and back: what masks are added to.

An update is a change against the round's adapter, so its values are small. A client scales it by
its weight w and rounds,

    v_k = rint( w · x_k · 2^f ) mod 2^32,    v_d = rint( w · 2^f ),    w in [2^-8, 1]

after clipping x to the norm bound and each coordinate to ±B. The weight is one more coordinate,
so it travels under the masks too. The coordinator divides the sum by the sum of the weights.

*Guard band.* Honest values stay within L = n·(rint(B·2^f) + tail); f is chosen so that L is at most
2^30, half of what the ring's two's complement holds. A decoded sum beyond L proves that somebody
did not follow the protocol, and the round is refused. What stays within L can still be a lie.

Rounding to nearest makes an encoding a function of its input, so that an audit can repeat it.
Source: Bonawitz et al., CCS 2017, section 7; parameters from `docs/adr/0006-secure-aggregation.md`.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.aggregation.keystream import Words
from offsite.secure.errors import ConfigError, PeerError

Values = NDArray[np.float32]

RING_BITS: Final = 32
_HALF_RANGE_BITS: Final = 30
MOST_FRACTION_BITS: Final = 28
LEAST_FRACTION_BITS: Final = 8
LEAST_WEIGHT: Final = 2.0**-LEAST_FRACTION_BITS
"""A smaller weight would leave its update too few bits; with fewer bits this one would be 0."""
_BLOCK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The encoding of one round; part of the signed round configuration.

    Raises:
        ConfigError: the sum of `members` honest values could leave the guard band.
    """

    fraction_bits: int  # f
    coordinate_bound: float  # B, in units of the update
    norm_bound: float  # L2, in units of the update; infinity for none
    noise_tail: int = 0  # steps of 2^-f that noise may add to one coordinate

    def __post_init__(self) -> None:
        if not LEAST_FRACTION_BITS <= self.fraction_bits <= MOST_FRACTION_BITS:
            raise ConfigError(
                f"fraction_bits: expected {LEAST_FRACTION_BITS} to {MOST_FRACTION_BITS}, found "
                f"{self.fraction_bits}"
            )
        for name in ("coordinate_bound", "norm_bound"):
            if not 0 < getattr(self, name) or math.isnan(getattr(self, name)):
                raise ConfigError(f"{name}: expected above 0, found {getattr(self, name)}")
        if not math.isfinite(self.coordinate_bound) or self.noise_tail < 0:
            raise ConfigError("expected a finite coordinate_bound and a noise_tail of 0 or more")

    @classmethod
    def for_cohort(
        cls, members: int, coordinate_bound: float, norm_bound: float = math.inf
    ) -> "FixedPoint":
        """The finest encoding whose sum over `members` stays within half of the ring."""
        reach = max(coordinate_bound, 1.0)
        bits = _HALF_RANGE_BITS - math.ceil(math.log2(members * reach) + 1e-9)
        if bits < LEAST_FRACTION_BITS:
            raise ConfigError(
                f"coordinate_bound {coordinate_bound:g} is too wide for {members} members: the "
                "ring of 2^32 cannot hold the sum; clip more"
            )
        return cls(min(bits, MOST_FRACTION_BITS), coordinate_bound, norm_bound)

    def bound(self, members: int) -> int:
        """L: what no honest sum of `members` exceeds, in steps of 2^-f.

        Raises:
            ConfigError: it does not fit into the guard band.
        """
        one = max(self.coordinate_bound, 1.0) * 2.0**self.fraction_bits
        # (compared first: a bound of 1e308 has no integer)
        bound = members * (math.ceil(min(one, 2.0**RING_BITS)) + self.noise_tail + 1)
        if bound >= 1 << (RING_BITS - 1):
            raise ConfigError(
                f"fixed point: {members} members may reach {bound}, the ring holds "
                f"{1 << (RING_BITS - 1)}: use fewer fraction_bits or clip more"
            )
        return bound


def clip_scale(update: Values, norm_bound: float) -> float:
    """The factor, at most 1, that brings an update (d,) to the norm bound.

    Raises:
        ConfigError: a value is not finite; such an update never leaves the edge.
    """
    norm = math.sqrt(float(np.dot(update, update.astype(np.float64, copy=False))))
    if not math.isfinite(norm):
        raise ConfigError("expected an update of finite values, found others: tuning diverged")
    return 1.0 if norm <= norm_bound else norm_bound / norm


def encode(update: Values, weight: float, settings: FixedPoint) -> Words:
    """The update (d,) and its weight as words (d + 1,).

    Args:
        weight: w in [2^-8, 1].

    Raises:
        ConfigError: another weight, or values that are not finite.
    """
    if not LEAST_WEIGHT <= weight <= 1:
        raise ConfigError(f"weight: expected {LEAST_WEIGHT} to 1, found {weight}")
    scale = clip_scale(update, settings.norm_bound)
    one = 2.0**settings.fraction_bits
    words = np.empty(len(update) + 1, np.uint32)
    for start in range(0, len(update), _BLOCK):
        block = update[start : start + _BLOCK] * np.float64(scale)
        np.clip(block, -settings.coordinate_bound, settings.coordinate_bound, out=block)
        block *= weight * one
        words[start : start + len(block)] = np.rint(block).astype(np.int32).view(np.uint32)
    words[-1] = round(weight * one)
    return words


@dataclass(frozen=True, slots=True)
class Mean:
    """What a cohort gives: the weighted mean of its updates (d,) and the sum of the weights."""

    values: Values
    total_weight: float


def decode(total: Words, members: int, settings: FixedPoint) -> Mean:
    """`decode_in_place` of a copy."""
    return decode_in_place(total.copy(), members, settings)


def decode_in_place(total: Words, members: int, settings: FixedPoint) -> Mean:
    """The weighted mean of an unmasked sum (d + 1,), whose memory it takes over.

    Raises:
        PeerError: beyond the guard band, or a weight that `members` cannot have: refuse the round.

    Guarantees: an honest sum is never refused, and each mean is within
    members · 2^-(f+1) / total weight of the exact one (`test_a_mean_is_as_exact_as_promised`).
    """
    bound, one = settings.bound(members), 2.0**settings.fraction_bits
    signed = total.view(np.int32)
    least, most = int(signed.min()), int(signed.max())
    if least < -bound or most > bound:
        raise PeerError(
            f"expected a sum within ±{bound}, found {least} to {most}: a member did not follow "
            "the protocol; the round is refused"
        )
    weight = int(signed[-1]) / one
    slack = members / one
    if weight <= 0 or not members * LEAST_WEIGHT - slack <= weight <= members + slack:
        raise PeerError(
            f"expected a total weight of {members} members, found {weight:g}: a member did not "
            "follow the protocol; the round is refused"
        )
    values = total[:-1].view(np.float32)
    for start in range(0, len(values), _BLOCK):
        block = signed[start : min(start + _BLOCK, len(values))] * (1.0 / (one * weight))
        values[start : start + len(block)] = block
    return Mean(values, weight)
