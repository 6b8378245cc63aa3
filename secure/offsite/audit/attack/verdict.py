"""Whether an adapter may leave, by what was measured and what its owner allows.

    exceeded    some figure is above what is allowed, with the stated confidence
    undecided   more than is allowed cannot be excluded: too few rows
    within      advantage and exposure are at most what is allowed, with the stated confidence

Rules: `within` needs an upper bound, so that few rows or few secrets never look like safety; what was not
measured is never within. Exposure exceeds only where it is beyond chance too.
"""

from dataclasses import dataclass
from enum import StrEnum

from offsite.audit.attack.exposure import Exposure
from offsite.audit.attack.membership import Membership
from offsite.audit.attack.settings import AttackSettings
from offsite.emulator.strict_json import JsonObject


class Verdict(StrEnum):
    """From the best to the worst."""

    WITHIN = "within"
    UNDECIDED = "undecided"
    EXCEEDED = "exceeded"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, and one line for everything that it rests on."""

    verdict: Verdict
    reasons: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {"verdict": self.verdict.value, "reasons": list(self.reasons)}


def judge(membership: Membership, exposure: Exposure | None, settings: AttackSettings) -> Judgement:
    """The worst of what membership and exposure say."""
    found = [_judge_membership(membership, settings)]
    if exposure is not None:
        found.append(_judge_exposure(exposure, settings))
    worst = max((verdict for verdict, _ in found), key=list(Verdict).index)
    return Judgement(worst, tuple(reason for _, reason in found))


def _judge_membership(found: Membership, settings: AttackSettings) -> tuple[Verdict, str]:
    allowed, bounds = settings.allowed_advantage, found.advantage
    says = f"membership advantage {bounds} at {100 * settings.confidence:g} %, allowed {allowed:g}"
    if not found.is_beyond_chance(settings.confidence):
        says += ", no more than chance"
    if bounds.low > allowed:
        return Verdict.EXCEEDED, says
    if bounds.high > allowed:
        return Verdict.UNDECIDED, f"{says}; more rows narrow the interval"
    return Verdict.WITHIN, says


def _judge_exposure(found: Exposure, settings: AttackSettings) -> tuple[Verdict, str]:
    allowed, bounds = settings.allowed_exposure_bits, found.mean_bits
    says = (
        f"mean exposure of {len(found.ranks)} planted secrets {bounds.value:.2f} bits "
        f"({bounds.low:.2f} to {bounds.high:.2f}), allowed {allowed:g}"
    )
    if not found.is_beyond_chance(settings.confidence):
        says += ", no more than chance"
    elif bounds.value > allowed:
        return Verdict.EXCEEDED, says
    if bounds.high > allowed:
        return Verdict.UNDECIDED, f"{says}; more secrets narrow the interval"
    return Verdict.WITHIN, says
