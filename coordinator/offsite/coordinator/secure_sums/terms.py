"""The terms of a secure sum, made and signed by the coordinator before a round begins."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from offsite.coordinator.attempt import Attempt
from offsite.coordinator.campaign_parts import Campaign
from offsite.coordinator.secure_sums.decisions import Decision, Decisions, decided
from offsite.emulator.rounds.plan import plan_digest
from offsite.emulator.schema import TensorSpec
from offsite.secure import envelope
from offsite.secure.aggregation.encoding import digest, integer
from offsite.secure.aggregation.fixed_point import FixedPoint
from offsite.secure.aggregation.keystream import Generator
from offsite.secure.aggregation.round_config import (
    CONFIG_TYPE,
    MOST_MEMBERS,
    PHASES,
    ROUND_ID_BYTES,
    RoundConfig,
)

FULL_WEIGHT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SumSettings:
    """How sums are made in a campaign."""

    coordinate_bound: float = 1.0
    """Largest change of one value in a round; more is clipped on the edge."""
    norm_bound: float = math.inf
    """Largest L2 norm of an update; more is scaled down on the edge."""
    full_weight: int = FULL_WEIGHT
    """Examples that weigh 1. More weigh no more, fewer than 1/256 of it weigh 1/256."""
    generator: Generator = Generator.CHACHA20
    phase_s: float = 120.0
    """Time for each of the exchanges after tuning."""


def schema_digest(schema: Mapping[str, TensorSpec]) -> bytes:
    """What the terms call a schema: names and shapes, in order."""
    fields: list[bytes] = []
    for name, spec in schema.items():
        fields += [name.encode(), *(integer(size) for size in spec.shape), b"/"]
    return digest("schema", *fields)


def value_count(schema: Mapping[str, TensorSpec]) -> int:
    """d: values of an update."""
    return sum(math.prod(spec.shape) for spec in schema.values())


def signed_terms(
    campaign: Campaign,
    attempt: Attempt,
    cohort: int,
    members: int,
    directory: tuple[int, bytes],
    settings: SumSettings,
    decisions: Decisions,
) -> bytes:
    """The signed terms of one cohort's sum: made once, found again after a restart.

    Args:
        members: how many clients are asked, and so at most take part.
        directory: version and signed bytes of the directory that names them.
    """

    def make() -> bytes:
        config = _terms(campaign, attempt, cohort, members, directory, settings)
        return envelope.to_bytes(
            envelope.sign(CONFIG_TYPE, config.to_bytes(), campaign.keys.identity)
        )

    return decided(decisions, sum_id(attempt, cohort), Decision.TERMS, make)


def sum_id(attempt: Attempt, cohort: int) -> str:
    """Names a sum on this coordinator."""
    return f"{attempt.plan.campaign_id}.{attempt.group_id}.{cohort}"


def _terms(
    campaign: Campaign,
    attempt: Attempt,
    cohort: int,
    members: int,
    directory: tuple[int, bytes],
    settings: SumSettings,
) -> RoundConfig:
    plan, schema = attempt.plan, campaign.record.release.schema
    most = min(members, MOST_MEMBERS)
    point = FixedPoint.for_cohort(most, settings.coordinate_bound)
    ends = [plan.deadline_unix_s + phase * settings.phase_s for phase in range(PHASES)]
    return RoundConfig(
        project="offsite",
        campaign_id=str(plan.campaign_id),
        round_id=secrets.token_bytes(ROUND_ID_BYTES),
        attempt=plan.attempt,
        cohort=cohort,
        directory_version=directory[0],
        directory_sha256=sha256(directory[1]).digest(),
        binding=plan_digest(attempt.envelope),
        schema_sha256=schema_digest(schema),
        values=value_count(schema),
        fixed_point=replace(point, norm_bound=settings.norm_bound),
        full_weight=settings.full_weight,
        generator=settings.generator,
        least_members=min(campaign.settings.min_replies, most),
        most_members=most,
        noise_sigma=0.0,
        deadlines_unix_s=tuple(ends),
    )
