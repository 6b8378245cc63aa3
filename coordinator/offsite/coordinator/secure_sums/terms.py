"""The terms of a secure sum, made and signed by the coordinator before a round begins."""

import secrets
from dataclasses import replace
from hashlib import sha256

from offsite.coordinator.attempt import Attempt
from offsite.coordinator.campaign_parts import Campaign
from offsite.emulator.rounds.plan import plan_digest
from offsite.emulator.rounds.vector import schema_digest, value_count
from offsite.secure import envelope
from offsite.secure.aggregation.fixed_point import FixedPoint
from offsite.secure.aggregation.round_config import (
    CONFIG_TYPE,
    PHASES,
    ROUND_ID_BYTES,
    RoundConfig,
)

PROJECT = "offsite"


def signed_terms(
    campaign: Campaign, attempt: Attempt, cohort: int, members: int, directory: tuple[int, bytes]
) -> bytes:
    """New signed terms of one cohort's sum: whoever asks twice gets two sums.

    Args:
        members: how many clients are asked, and so at most take part.
        directory: version and signed bytes of the directory that names them.
    """
    settings, plan, schema = campaign.settings.sums, attempt.plan, campaign.record.release.schema
    point = FixedPoint.for_cohort(members, settings.coordinate_bound)
    config = RoundConfig(
        project=PROJECT,
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
        least_members=campaign.settings.min_replies,
        most_members=members,
        noise_sigma=0.0,
        deadlines_unix_s=_deadlines(plan.deadline_unix_s, cohort, settings.phase_s),
    )
    return envelope.to_bytes(envelope.sign(CONFIG_TYPE, config.to_bytes(), campaign.keys.identity))


def _deadlines(tuned_unix_s: float, cohort: int, phase_s: float) -> tuple[float, ...]:
    """The latest times; a phase that begins early ends early (`secure_sum`).

    Cohorts are summed one after the other, each with five exchanges after tuning; the last two
    share a deadline.
    """
    start = tuned_unix_s + cohort * PHASES * phase_s
    exchanges = (1, 2, 3, PHASES)
    return (tuned_unix_s, *(start + phase_s * count for count in exchanges))
