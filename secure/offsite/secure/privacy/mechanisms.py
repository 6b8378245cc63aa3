"""Mechanisms as frozen events: what was released, exactly enough to compute its epsilon again.

A ledger stores these and never an epsilon; accountants interpret them (`accounting/`). The type
names the sampling, the fields name unit and adjacency, the sampling rate is an exact rational, and
the JSON form is exact in both directions, through RFC 8785 too (it writes 1.0 as 1).

    PoissonGaussian            each unit drawn with probability q, noise sigma·C on the clipped sum
    TruncatedPoissonGaussian   the same, but a batch above `cap` is cut to a uniform subset
    Gaussian                   no sampling: q = 1

`noise_multiplier` is sigma, the noise's standard deviation in units of the clip norm C. C itself
is no part of it: the guarantee does not depend on C. `uses` counts how often it was applied.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Self

from offsite.secure.errors import ConfigError, IntegrityError
from offsite.secure.privacy.units import Adjacency, Unit

JsonValue = str | int | float

MOST_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""
MOST_USES: Final = 2**31 - 1
MOST_NOISE: Final = 2.0**20


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """The Gaussian mechanism on a Poisson sample: one step of DP-SGD, `steps` times.

    Raises:
        ConfigError: a value out of range.
    """

    noise_multiplier: float
    sampling: Fraction  # q, in (0, 1]
    steps: int
    unit: Unit
    adjacency: Adjacency = Adjacency.ZERO_OUT

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_sampling(self.sampling)
        _check_integer("steps", self.steps, MOST_USES)

    @property
    def uses(self) -> int:
        """How often it was applied."""
        return self.steps

    def repeated(self, uses: int) -> Self:
        """The same mechanism, applied `uses` times."""
        return dataclasses.replace(self, steps=uses)

    def to_json(self) -> dict[str, JsonValue]:
        """The exact form that a ledger stores."""
        return {
            "kind": "poisson_gaussian",
            "noise_multiplier": self.noise_multiplier,
            "sampling": _text(self.sampling),
            "steps": self.steps,
            "unit": self.unit.value,
            "adjacency": self.adjacency.value,
        }


@dataclass(frozen=True, slots=True)
class TruncatedPoissonGaussian:
    """A Poisson sample cut to `cap` units: no batch is larger, at a somewhat higher price.

    `units` is how many units the data hold. It is as secret as the data.

    Raises:
        ConfigError: a value out of range.
    """

    noise_multiplier: float
    sampling: Fraction  # q, in (0, 1]
    steps: int
    units: int
    cap: int
    unit: Unit
    adjacency: Adjacency = Adjacency.ZERO_OUT

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_sampling(self.sampling)
        _check_integer("steps", self.steps, MOST_USES)
        _check_integer("units", self.units, MOST_USES)
        _check_integer("cap", self.cap, self.units)

    @property
    def uses(self) -> int:
        """How often it was applied."""
        return self.steps

    def repeated(self, uses: int) -> Self:
        """The same mechanism, applied `uses` times."""
        return dataclasses.replace(self, steps=uses)

    def to_json(self) -> dict[str, JsonValue]:
        """The exact form that a ledger stores."""
        return {
            "kind": "truncated_poisson_gaussian",
            "noise_multiplier": self.noise_multiplier,
            "sampling": _text(self.sampling),
            "steps": self.steps,
            "units": self.units,
            "cap": self.cap,
            "unit": self.unit.value,
            "adjacency": self.adjacency.value,
        }


@dataclass(frozen=True, slots=True)
class Gaussian:
    """The Gaussian mechanism on all units, `count` times: a count, a metric, a full-batch step.

    Raises:
        ConfigError: a value out of range.
    """

    noise_multiplier: float
    count: int
    unit: Unit
    adjacency: Adjacency = Adjacency.ZERO_OUT

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_integer("count", self.count, MOST_USES)

    @property
    def uses(self) -> int:
        """How often it was applied."""
        return self.count

    def repeated(self, uses: int) -> Self:
        """The same mechanism, applied `uses` times."""
        return dataclasses.replace(self, count=uses)

    def to_json(self) -> dict[str, JsonValue]:
        """The exact form that a ledger stores."""
        return {
            "kind": "gaussian",
            "noise_multiplier": self.noise_multiplier,
            "count": self.count,
            "unit": self.unit.value,
            "adjacency": self.adjacency.value,
        }


Mechanism = PoissonGaussian | TruncatedPoissonGaussian | Gaussian


def mechanism_from_json(value: object) -> Mechanism:
    """Reads what `to_json` wrote, and nothing else.

    Raises:
        IntegrityError: a missing or unknown field, a wrong type, a value out of range.
    """
    if not isinstance(value, Mapping):
        raise IntegrityError(f"mechanism: expected an object, found {type(value).__name__}")
    fields = dict(value)
    kind = fields.pop("kind", None)
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise IntegrityError(
            f"mechanism: expected a kind of {sorted(_READERS)}, found {kind!r:.80}"
        )
    try:
        mechanism = read(fields)
    except ConfigError as error:
        raise IntegrityError(f"mechanism: {error}") from None
    if fields:
        raise IntegrityError(f"mechanism: found unknown fields {sorted(map(str, fields))!r:.200}")
    return mechanism


def _poisson_gaussian(fields: dict[object, object]) -> Mechanism:
    return PoissonGaussian(
        noise_multiplier=_take_number(fields, "noise_multiplier"),
        sampling=_take_fraction(fields, "sampling"),
        steps=_take_integer(fields, "steps"),
        unit=_take_unit(fields),
        adjacency=_take_adjacency(fields),
    )


def _truncated_poisson_gaussian(fields: dict[object, object]) -> Mechanism:
    return TruncatedPoissonGaussian(
        noise_multiplier=_take_number(fields, "noise_multiplier"),
        sampling=_take_fraction(fields, "sampling"),
        steps=_take_integer(fields, "steps"),
        units=_take_integer(fields, "units"),
        cap=_take_integer(fields, "cap"),
        unit=_take_unit(fields),
        adjacency=_take_adjacency(fields),
    )


def _gaussian(fields: dict[object, object]) -> Mechanism:
    return Gaussian(
        noise_multiplier=_take_number(fields, "noise_multiplier"),
        count=_take_integer(fields, "count"),
        unit=_take_unit(fields),
        adjacency=_take_adjacency(fields),
    )


_READERS: Final[Mapping[str, Callable[[dict[object, object]], Mechanism]]] = {
    "poisson_gaussian": _poisson_gaussian,
    "truncated_poisson_gaussian": _truncated_poisson_gaussian,
    "gaussian": _gaussian,
}


def _take_number(fields: dict[object, object], name: str) -> float:
    found = fields.pop(name, None)
    # RFC 8785 writes 1.0 as 1. An integer that no float holds exactly was never written by us.
    if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) > MOST_INTEGER:
        raise IntegrityError(f"{name}: expected a number, found {found!r:.80}")
    return float(found)


def _take_integer(fields: dict[object, object], name: str) -> int:
    found = fields.pop(name, None)
    if isinstance(found, bool) or not isinstance(found, int):
        raise IntegrityError(f"{name}: expected an integer, found {found!r:.80}")
    return found


def _take_fraction(fields: dict[object, object], name: str) -> Fraction:
    found = fields.pop(name, None)
    parts = found.split("/") if isinstance(found, str) and len(found) <= 40 else []
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        numerator, denominator = map(int, parts)
        fraction = Fraction(numerator, denominator) if denominator else Fraction(0)
        if _text(fraction) == found:
            return fraction
    raise IntegrityError(f"{name}: expected a reduced fraction as '1/100', found {found!r:.80}")


def _take_unit(fields: dict[object, object]) -> Unit:
    return Unit(_take_one_of(fields, "unit", [unit.value for unit in Unit]))


def _take_adjacency(fields: dict[object, object]) -> Adjacency:
    return Adjacency(_take_one_of(fields, "adjacency", [member.value for member in Adjacency]))


def _take_one_of(fields: dict[object, object], name: str, known: list[str]) -> str:
    found = fields.pop(name, None)
    if not isinstance(found, str) or found not in known:
        raise IntegrityError(f"{name}: expected one of {known}, found {found!r:.80}")
    return found


def _text(fraction: Fraction) -> str:
    return f"{fraction.numerator}/{fraction.denominator}"


def _check_noise(value: float) -> None:
    if not isinstance(value, float) or not (math.isfinite(value) and 0 < value <= MOST_NOISE):
        raise ConfigError(
            f"noise_multiplier: expected a float above 0 and at most {MOST_NOISE:g}, found "
            f"{value!r:.80}: without noise there is no privacy to account for"
        )


def _check_sampling(value: Fraction) -> None:
    # A float rate is refused: 0.01 is not 1/100, and a ledger has to be exact.
    if not isinstance(value, Fraction) or not 0 < value <= 1 or value.denominator > MOST_INTEGER:
        raise ConfigError(f"sampling: expected a fraction above 0 and at most 1, found {value}")


def _check_integer(name: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(f"{name}: expected an integer from 1 to {most}, found {value!r:.80}")
