"""From the means of cohorts to the next adapter, by a strategy of Flower.

Notable decisions:

- Strategies are given changes, and where the round started is 0 to them. None of them minds: what
  each computes moves with the origin. But Krum and Bulyan compare vectors by their distance, computed
  in fp32 from norms: of two adapters of norm 100 that differ by 0.01 nothing would be left of it.
- Where a strategy treats every value by itself, tensor after tensor is aggregated, so that memory
  does not hold all cohorts' copies at once. Krum, MultiKrum and Bulyan choose cohorts as a whole.
- A strategy sees one reply for each cohort, its mean: what one client sent, nobody sees. So a robust
  strategy is robust across cohorts, not inside one, and it counts all cohorts alike: a weight is the
  word of a cohort's members.
- FedAdam and FedYogi compute in float64 where NumPy promotes; the next adapter is fp32 like the wire.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, Metadata, MetricRecord, RecordDict
from torch import Tensor

from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.coordinator.strategies.cohort_update import CohortUpdate
from offsite.coordinator.strategies.fit import ROBUST, fewest_cohorts
from offsite.coordinator.strategies.flower_strategies import (
    give_state,
    make_strategy,
    take_state,
)
from offsite.emulator.rounds.flower_internals import SERVER_NODE_ID, message_with_metadata
from offsite.emulator.rounds.instruction import ARRAYS, adapter_to_record
from offsite.secure.errors import PolicyError

METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
"""Where Flower's strategies look for the weight of a reply."""
WHOLE = frozenset({StrategyName.KRUM, StrategyName.MULTIKRUM, StrategyName.BULYAN})
"""They look at an update as one vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Aggregated:
    """What a round leaves behind."""

    adapter: dict[str, Tensor]
    state: dict[str, Tensor]
    """What the strategy remembers; empty for those that remember nothing."""


def aggregate(
    section: StrategySection,
    aggregation: int,
    adapter: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    means: Sequence[CohortUpdate],
) -> Aggregated:
    """The next adapter, and the next state.

    Args:
        aggregation: how many aggregations the state has seen, and this one; for FedAdam's bias.
        adapter: what the round started from, fp32.
        state: empty in the first round.
        means: at least `fewest_cohorts`. They are added up in the order of their names.

    Raises:
        PolicyError: they are too few for what the strategy promises.
    """
    if len(means) < (fewest := fewest_cohorts(section)):
        raise PolicyError(
            f"{section.name.value}: expected the means of at least {fewest} cohorts, found "
            f"{len(means)}"
        )
    ordered = sorted(means, key=lambda mean: mean.name)
    parts = [list(adapter)] if section.name in WHOLE else [[name] for name in adapter]
    made = Aggregated({}, {})
    for names in parts:
        origin = {name: torch.zeros_like(adapter[name]) for name in names}
        strategy = make_strategy(section, len(ordered))
        give_state(strategy, origin, state)
        replies = [_reply(section, names, mean) for mean in ordered]
        arrays, _ = strategy.aggregate_train(aggregation, replies)
        assert arrays is not None  # there are enough replies
        for name in names:
            change = torch.from_numpy(arrays[name].numpy())
            made.adapter[name] = (adapter[name] + change).float()
        made.state.update(take_state(strategy, names))
    return made


def _reply(section: StrategySection, names: Sequence[str], mean: CohortUpdate) -> Message:
    """A reply as Flower's strategies expect it."""
    weight = MetricRecord({NUM_EXAMPLES: 1.0 if section.name in ROBUST else mean.weight})
    arrays = adapter_to_record({name: mean.delta[name] for name in names})
    content = RecordDict({ARRAYS: arrays, METRICS: weight})
    # Flower reads of these nothing but which reply holds an error.
    metadata = Metadata(0, mean.name, 0, SERVER_NODE_ID, mean.name, mean.name, 0.0, 1.0, "train")
    return message_with_metadata(metadata, content)
