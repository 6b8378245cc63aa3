"""From losses to a verdict: pure, without a model, so that whoever has the numbers can do it again."""

from dataclasses import dataclass

from offsite.audit.attack.entropy import generator
from offsite.audit.attack.exposure import Exposure, measure_exposure
from offsite.audit.attack.losses import Pair
from offsite.audit.attack.membership import Membership, infer_membership
from offsite.audit.attack.settings import AttackSettings
from offsite.audit.attack.verdict import Judgement, judge

_MEMBERSHIP = b"offsite/attack/membership/1"
_EXPOSURE = b"offsite/attack/exposure/1"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The losses of everything, before and after, and of which adapter."""

    members: Pair
    held_out: Pair
    planted: tuple[Pair, ...]
    """Of every secret: its own losses, then those of its candidates."""
    before_sha256: str
    after_sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Attack:
    """What the attack achieved, and the verdict."""

    measured: Measured
    settings: AttackSettings
    entropy: bytes
    membership: Membership
    exposure: Exposure | None
    judgement: Judgement


def analyse(measured: Measured, settings: AttackSettings, entropy: bytes) -> Attack:
    """Steps (2) and (3); the same numbers give the same result."""
    membership = infer_membership(
        measured.members,
        measured.held_out,
        settings,
        generator(_MEMBERSHIP, entropy),
    )
    exposure = None
    if measured.planted:
        random = generator(_EXPOSURE, entropy)
        exposure = measure_exposure(measured.planted, settings, random)
    judgement = judge(membership, exposure, settings)
    return Attack(measured, settings, entropy, membership, exposure, judgement)
