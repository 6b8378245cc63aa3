"""How far one unit moves the sum: noise off, with the unit and without it.

    ratio      ‖f(D) - f(D∖x)‖ / C               must be at most 1.0001
    coupling   ‖f(D) - f(D∖x) - f({x})‖ / C      must be at most 0.0001

The ratio is what the noise is scaled for. The coupling is the sharper test: a clipped sum adds up
unit by unit, and whatever lets one unit change another's gradient, such as a loss over the tokens of
the batch, a batch that is clipped as a whole or padding that reaches further, does not, even
where the units that were tried happen to move it by less than C.

Both are measured at the clip norm of the plan and at one so small that every unit is clipped;
otherwise gradients that are small anyway would hide that nothing is clipped.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from offsite.emulator.privacy.proof.mechanism import Mechanism, Unit
from offsite.emulator.privacy.proof.report import Check
from offsite.emulator.privacy.proof.synthetic import Case
from offsite.secure.privacy.logical_batch import TOLERANCE

_UNCLIPPED = 1e30
"""No gradient is larger, and its square is no infinity in fp64."""


def sensitivity_checks(mechanism: Mechanism, cases: Sequence[Case]) -> Iterator[Check]:
    """Yield whether anything trains, and for each case the worst ratio and coupling."""
    norms = [_norm(mechanism.clipped_sum([unit], _UNCLIPPED)) for unit in _some(cases)]
    yield Check(
        "trains",
        sum(norm > 0 for norm in norms),
        1,
        len(norms),
        0.0,
        "an adapter without gradients, which would be noise alone",
    )
    stated = mechanism.terms.clip_norm
    tight = min([norm / 4 for norm in norms if norm > 0], default=stated)
    for case in cases:
        yield from _checks_of(mechanism, case, sorted({stated, min(stated, tight)}))


def _checks_of(mechanism: Mechanism, case: Case, clips: Sequence[float]) -> Iterator[Check]:
    found = [_moved(mechanism, case, place, clip) for clip in clips for place in case.left_out]
    ratio, coupling = (max(numbers, key=_largest) for numbers in zip(*found, strict=True))
    wrong = "a unit that moves the sum by more than its noise is for"
    yield Check(f"{case.name}.ratio", ratio, 0, 1 + TOLERANCE, 0.0, wrong)
    coupled = "units that change each other's gradients"
    yield Check(f"{case.name}.coupling", coupling, 0, TOLERANCE, 0.0, coupled)


def _largest(number: float) -> float:
    """NaN is the worst there is."""
    return math.inf if math.isnan(number) else number


def _moved(mechanism: Mechanism, case: Case, place: int, clip: float) -> tuple[float, float]:
    """Return (ratio, coupling) of leaving one unit out."""
    others = [unit for at, unit in enumerate(case.units) if at != place]
    difference = mechanism.clipped_sum(case.units, clip)
    if others:
        difference -= mechanism.clipped_sum(others, clip)
    ratio = _norm(difference) / clip
    difference -= mechanism.clipped_sum([case.units[place]], clip)
    return ratio, _norm(difference) / clip


def _some(cases: Sequence[Case]) -> Iterator[Unit]:
    """The first unit of every case."""
    return (case.units[0] for case in cases)


def _norm(vector: torch.Tensor) -> float:
    """In fp64, in parts: one fp32 sum over millions of squares is off by 8 parts in 10,000."""
    parts = torch.split(vector, 1 << 20)
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))
