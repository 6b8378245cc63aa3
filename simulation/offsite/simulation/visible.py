"""Sums in the clear, for simulation alone: the same means without keys, masks and shares.

A client of a simulation that sees its updates leaves them on a `Board` in memory, clipped and
weighted as an edge would; `VisibleSum` adds up those that secure aggregation would have, by the
same rules: who has left before its masked update was there is not in it, and fewer than a
threshold that stay to the end give no sum at all. What differs is the rounding to fixed point, and
that no time passes.

Real edges have no such thing: what they send is masked, and no setting of a coordinator changes
that."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from flwr.app import Message, RecordDict

from offsite.coordinator.campaign_parts import Campaign
from offsite.coordinator.secure_sums.secure_sum import Cohort, CohortMean
from offsite.edge_client.secure_rounds import SecureRounds
from offsite.emulator.rounds.exchange import Action, exchange_content, read_exchange
from offsite.emulator.rounds.plan import RoundPlan, SignedPlan
from offsite.emulator.rounds.vector import Schema
from offsite.secure.aggregation.fixed_point import LEAST_WEIGHT, Mean, Values, clip_scale
from offsite.secure.aggregation.member import open_config
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.errors import PeerError, PolicyError
from offsite.simulation.weather import Moment, Weather

TUNED: Final = b"tuned"


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A client's update, in the clear."""

    client_id: str
    values: Values
    """fp32 (d,), clipped."""
    weight: float
    """In [2^-8, 1]."""


Combine = Callable[[RoundPlan, list[Seen]], Values]
"""What stands in the place of the weighted mean (d,)."""


def weighted_mean(plan: RoundPlan, seen: list[Seen]) -> Values:
    """What a secure sum gives, but for its rounding."""
    total = sum(one.weight for one in seen)
    mean = np.zeros(len(seen[0].values), np.float64)
    for one in seen:
        mean += one.weight / total * one.values
    return mean.astype(np.float32)


@dataclass(slots=True, eq=False)
class Board:
    """Updates by the digest of the terms that they are for, and by client; with the plan."""

    combine: Combine = weighted_mean
    updates: dict[bytes, dict[str, Seen]] = field(default_factory=dict)
    plans: dict[bytes, RoundPlan] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VisibleRounds(SecureRounds):
    """Takes part in sums in the clear."""

    board: Board = field(default_factory=Board)

    def check_terms(self, terms: bytes, signed: SignedPlan, schema: Schema) -> bool:
        """There is nothing to go on with: an update is tuned anew."""
        open_config(terms, self.trust.coordinator_key)
        return False

    def took_part(self, plan: RoundPlan) -> bool:
        return False

    def begin(
        self, terms: bytes, signed: SignedPlan, update: Values, num_examples: float
    ) -> RecordDict:
        """Clips and weighs as `fixed_point.encode` does."""
        config = open_config(terms, self.trust.coordinator_key)
        weight = min(max(num_examples / config.full_weight, LEAST_WEIGHT), 1.0)
        point = config.fixed_point
        clipped = update * np.float64(clip_scale(update, point.norm_bound))
        np.clip(clipped, -point.coordinate_bound, point.coordinate_bound, out=clipped)
        seen = Seen(self.client_id, clipped.astype(np.float32), weight)
        self.board.updates.setdefault(config.digest, {})[self.client_id] = seen
        self.board.plans[config.digest] = signed.plan
        return exchange_content(config.digest, TUNED)

    def answer(self, action: Action, message: Message) -> Message:
        raise PeerError(f"{action.value}: sums are visible here; nothing is exchanged after tuning")


@dataclass(slots=True, eq=False)
class VisibleSum:
    """See `CohortSum`."""

    campaign: Campaign
    cohort: Cohort
    board: Board
    weather: Weather
    refused: set[str] = field(default_factory=set)
    update_bytes: int = 0
    _tuned: list[str] = field(default_factory=list)

    def add_advertisements(self, replies: Iterable[tuple[str, Message]]) -> None:
        """Who has tuned."""
        for name, reply in replies:
            try:
                read_exchange(reply)
                self._tuned.append(name)
            except PeerError:
                self.refused.add(name)

    def mean(self) -> CohortMean:
        """Raises PolicyError where secure aggregation would not have opened the sum."""
        config = open_config(self.cohort.terms, self.campaign.keys.identity.public)
        updates: Mapping[str, Seen] = self.board.updates.pop(config.digest, {})
        plan = self.board.plans.pop(config.digest, None)
        survivors = self._survivors(config, plan)
        assert plan is not None  # somebody has tuned
        seen = [updates[name] for name in survivors]
        self.update_bytes = max(one.values.nbytes for one in seen)
        values = self.board.combine(plan, seen)
        total = sum(one.weight for one in seen)
        dropped = tuple(name for name in sorted(self._tuned) if name not in survivors)
        return CohortMean(Mean(values, total), survivors, dropped)

    def _survivors(self, config: RoundConfig, plan: RoundPlan | None) -> tuple[str, ...]:
        """Those whose masked update would have come, if enough stayed to open their sum."""
        least = config.least_members
        if plan is None or len(self._tuned) < least:
            raise PolicyError(
                f"expected at least {least} that have tuned, found {len(self._tuned)}"
            )
        where = plan.round, plan.attempt

        def there(moment: Moment) -> tuple[str, ...]:
            return tuple(n for n in sorted(self._tuned) if self.weather.answers(n, *where, moment))

        threshold = config.threshold(len(self._tuned))  # of the roster: all that have tuned
        survivors, stayed = there(Moment.MASK), there(Moment.REVEAL)
        if len(survivors) < max(threshold, least) or len(stayed) < threshold:
            raise PolicyError(
                f"expected {max(threshold, least)} masked updates and {threshold} members to the "
                f"end, found {len(survivors)} and {len(stayed)}: the sum could not be opened"
            )
        return survivors
