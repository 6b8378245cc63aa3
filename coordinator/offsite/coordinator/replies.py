"""What a round brings in: the mean of each cohort, and how many clients are in it.

Whoever answers the instruction has tuned and offers keys, and nothing of its update; then each
cohort is summed (`secure_sums.secure_sum`), one after the other. A cohort that fails, for too few of its members came
through or because one of them cheated, is logged and lost; the others count.

Rules: a client counts if it was asked for this round and is still in the directory. Of three or more cohorts, one whose
mean has a norm of more than `MOST_TIMES_MEDIAN` times the lower median of the round's is refused
and logged: with the same settings and the same start, honest means differ far less. Of two nobody
can say which one is the odd one, and inside a cohort nobody sees anything. A robust strategy is given
all of them: it compares them itself, and with a cohort fewer than it needs no round would count.
"""

import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

import numpy as np
from flwr.app import Message

from offsite.coordinator.attempt import Attempt
from offsite.coordinator.campaign_parts import Campaign
from offsite.coordinator.leases import Patience
from offsite.coordinator.pulling import pulled
from offsite.coordinator.secure_sums.secure_sum import Cohort, CohortMean, SecureSum
from offsite.coordinator.strategies.cohort_update import CohortUpdate
from offsite.coordinator.strategies.fit import ROBUST
from offsite.emulator.rounds.vector import from_vector
from offsite.secure.aggregation.fixed_point import Values
from offsite.secure.errors import PeerError, PolicyError
from offsite.secure.names import node_id

log = logging.getLogger(__name__)

MOST_TIMES_MEDIAN = 10.0
FEWEST_TO_COMPARE = 3
_NORM_VALUES = 1 << 18


@dataclass(slots=True)
class Replies:
    """What came of a round. Every client that was asked is in exactly one of the counts."""

    means: list[CohortUpdate] = field(default_factory=list)
    survivors: int = 0
    """Clients whose update is in a mean that counts."""
    refused: int = 0
    """Clients that reported an error, or sent what does not fit."""
    late: int = 0
    """Clients that had not tuned when the deadline passed."""
    dropped: int = 0
    """Clients that had tuned and are in no mean: gone since, or their cohort was lost."""
    cohorts_lost: int = 0
    update_bytes: int = 0
    """The largest masked update, as it travelled."""
    secure_s: float = 0.0
    """What the exchanges after tuning took, all cohorts together."""

    def counts(self) -> dict[str, float]:
        """For the round's metrics."""
        return {
            "updates": float(self.survivors),
            "refused": float(self.refused),
            "late": float(self.late),
            "dropped": float(self.dropped),
            "cohorts": float(len(self.means)),
            "cohorts_lost": float(self.cohorts_lost),
            "update_bytes": float(self.update_bytes),
            "secure_s": round(self.secure_s, 3),
        }


def collect(
    campaign: Campaign, attempt: Attempt, cohorts: Sequence[Cohort], message_ids: Sequence[str]
) -> Replies:
    """Wait until everybody has tuned or the deadline has passed; then add up each cohort.

    Guarantees:
        Of at least three cohorts none is kept whose mean's norm is more than ten times the lower
        median (test_a_cohort_far_larger_than_the_others_is_refused_and_they_count).
    """
    replies = Replies()
    # (1) Who has tuned, by cohort.
    tuned = _tuned(campaign, attempt, cohorts, message_ids, replies)
    # (2) The sum of each cohort, and nothing else of its members.
    started, means = monotonic(), []
    for cohort in cohorts:
        mean = _mean(campaign, cohort, tuned.get(cohort.sum_id, []), replies)
        if mean is not None:
            means.append((cohort, mean))
    replies.secure_s = monotonic() - started
    # (3) Without the cohorts that stand out.
    is_robust = campaign.settings.strategy.name in ROBUST
    for cohort, mean in means if is_robust else _without_outliers(means, replies):
        schema = campaign.record.release.schema
        weight = mean.mean.total_weight * campaign.settings.sums.full_weight
        update = CohortUpdate(cohort.sum_id, from_vector(mean.mean.values, schema), weight)
        replies.means.append(update)
        replies.survivors += len(mean.survivors)
    return replies


def _tuned(
    campaign: Campaign,
    attempt: Attempt,
    cohorts: Sequence[Cohort],
    message_ids: Sequence[str],
    replies: Replies,
) -> dict[str, list[tuple[str, Message]]]:
    """The replies to the instructions with their senders' names, by sum."""
    asked = {node_id(name): (cohort, name) for cohort in cohorts for name in cohort.keys}
    found: dict[str, list[tuple[str, Message]]] = {}
    answered = 0
    poll_s, least = campaign.settings.poll_s, campaign.settings.min_replies
    patience = Patience(campaign.settings.leave_s, campaign.silent_s)

    def is_over() -> bool:
        has_enough = all(len(found.get(c.sum_id, ())) >= least for c in cohorts)
        return patience.is_over(asked.keys(), has_enough)

    for reply in pulled(campaign, attempt.plan.deadline_unix_s, message_ids, poll_s, is_over):
        answered += 1
        node = reply.metadata.src_node_id
        try:
            cohort, name = _asked(campaign, asked, node)
        except PeerError as error:
            replies.refused += 1
            log.warning("round %d: left out: %s", attempt.row.round, error)
            continue
        del asked[node]  # one reply of each
        found.setdefault(cohort.sum_id, []).append((name, reply))
    replies.late = len(message_ids) - answered
    if replies.late and campaign.clock() < attempt.plan.deadline_unix_s:
        gone = ", ".join(sorted(name for _, name in asked.values()))
        log.info("round %d goes on without %s: gone", attempt.row.round, gone)
    return found


def _asked(
    campaign: Campaign, asked: Mapping[int, tuple[Cohort, str]], node: int
) -> tuple[Cohort, str]:
    if node not in campaign.members():
        raise PeerError(f"reply of node {node}: not, or no longer, in the directory")
    if node not in asked:
        raise PeerError(f"reply of node {node}: it was not asked, or has answered before")
    return asked[node]


def _mean(
    campaign: Campaign, cohort: Cohort, tuned: list[tuple[str, Message]], replies: Replies
) -> CohortMean | None:
    """The mean of one cohort; None if it came to nothing."""
    made = (campaign.secure.summing or SecureSum)(campaign, cohort)
    mean, reason = None, ""
    try:
        made.add_advertisements(tuned)
        mean = made.mean()
    except (PolicyError, PeerError) as error:
        reason = str(error)
        replies.cohorts_lost += 1
        log.warning("cohort %s is lost: %s", cohort.sum_id, reason)
    replies.update_bytes = max(replies.update_bytes, made.update_bytes)
    survivors = 0 if mean is None else len(mean.survivors)
    replies.refused += len(made.refused)
    replies.dropped += max(len(tuned) - survivors - len(made.refused), 0)
    return mean


def _without_outliers(
    means: list[tuple[Cohort, CohortMean]], replies: Replies
) -> Iterator[tuple[Cohort, CohortMean]]:
    """Those whose norm is not far from what is usual in the round."""
    norms = [norm_of(mean.mean.values) for _, mean in means]
    is_compared = len(means) >= FEWEST_TO_COMPARE
    most = MOST_TIMES_MEDIAN * statistics.median_low(norms) if is_compared else float("inf")
    for (cohort, mean), norm in zip(means, norms, strict=True):
        if norm <= most:
            yield cohort, mean
            continue
        replies.cohorts_lost += 1
        replies.dropped += len(mean.survivors)
        log.warning(
            "cohort %s refused: expected a mean of norm at most %.4g, ten times the median,"
            " found %.4g",
            cohort.sum_id,
            most,
            norm,
        )


def norm_of(values: Values) -> float:
    """The L2 norm of a vector, in fp64, with little of it in fp64 at a time."""
    total = 0.0
    for start in range(0, len(values), _NORM_VALUES):
        piece = values[start : start + _NORM_VALUES].astype(np.float64)
        total += float(np.dot(piece, piece))
    return math.sqrt(total)
