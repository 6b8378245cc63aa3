"""Flower's strategies by name, with defaults for fine-tuning, and their state as tensors.

Notable decisions:

- Every node that is given is asked; who is eligible is decided by the campaign, so Flower's own
  sampling always takes all.
- FedAvg has no state. FedAdam (Reddi et al., arXiv 2003.00295, algorithm 2) keeps the moments m and
  v, which are saved beside the adapter after every round: each round begins with a new strategy
  object that is given the state of the last one, so a restart is no special case.
- FedAdam's server rate is 1e-3 and its tau 1e-5 (Flower: 0.1 and 1e-3). A fine-tuning update moves
  a weight by about 1e-3; with Flower's tau the step would hardly adapt, with its rate the weights
  would be destroyed in the first round.
- A strategy sees one reply for each cohort, its mean: what one client sent, nobody sees. So a robust
  strategy is robust across cohorts, not inside one.
- FedAdam computes in float64 where NumPy promotes; the next adapter is fp32 like the wire.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg
from torch import Tensor

from offsite.coordinator.config import StrategyName
from offsite.emulator.rounds.flower_internals import (
    SERVER_NODE_ID,
    message_with_metadata,
    quieten,
)
from offsite.emulator.rounds.instruction import ARRAYS, CONFIG, adapter_to_record
from offsite.emulator.schema import TensorSpec

SERVER_LEARNING_RATE = 1e-3
TAU = 1e-5
MOMENTS = ("m_t", "v_t")
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
"""Where Flower's strategies look for the weight of a reply."""


@dataclass(frozen=True, slots=True)
class CohortUpdate:
    """What a strategy gets of a cohort."""

    name: str
    delta: Mapping[str, Tensor]
    """The members' weighted mean: tuned adapter minus the round's, fp32, by adapter name."""
    weight: float
    """The sum of the members' weights, in examples."""


def make_strategy(name: StrategyName, server_learning_rate: float = SERVER_LEARNING_RATE) -> FedAvg:
    """A new strategy without state."""
    quieten()
    if name is StrategyName.FEDAVG:
        return FedAvg(min_train_nodes=1, min_available_nodes=1, arrayrecord_key=ARRAYS)
    return FedAdam(
        min_train_nodes=1,
        min_available_nodes=1,
        arrayrecord_key=ARRAYS,
        configrecord_key=CONFIG,
        eta=server_learning_rate,
        tau=TAU,
    )


def state_of(strategy: FedAvg) -> dict[str, Tensor]:
    """What the strategy remembers between rounds, by `m_t/<name>` and `v_t/<name>`."""
    return {
        f"{moment}/{name}": torch.from_numpy(np.ascontiguousarray(values))
        for moment in MOMENTS
        for name, values in (getattr(strategy, moment, None) or {}).items()
    }


def state_schema(name: StrategyName, adapter: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The schema of the state after a round."""
    if name is StrategyName.FEDAVG:
        return {}
    return {f"{moment}/{key}": spec for moment in MOMENTS for key, spec in adapter.items()}


def begin_round(
    strategy: FedAvg, adapter: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Give a new strategy the adapter that the round starts from and the state so far."""
    if not isinstance(strategy, FedAdam):
        return
    strategy.current_arrays = {name: tensor.numpy() for name, tensor in adapter.items()}
    for moment in MOMENTS if state else ():
        values = {name: state[f"{moment}/{name}"].numpy() for name in adapter}
        setattr(strategy, moment, values)


def instructions(
    strategy: FedAvg,
    round_number: int,
    adapter: Mapping[str, Tensor],
    config: Mapping[str, bytes],
    node_ids: Sequence[int],
) -> Iterable[Message]:
    """One instruction to each node, as the strategy configures it; `config` is what it says."""
    grid = cast(Grid, _Eligible(sorted(node_ids)))
    record = ConfigRecord(dict(config))
    return strategy.configure_train(round_number, adapter_to_record(adapter), record, grid)


def aggregate(
    strategy: FedAvg,
    aggregation: int,
    adapter: Mapping[str, Tensor],
    means: Sequence[CohortUpdate],
) -> dict[str, Tensor]:
    """The next adapter.

    Args:
        aggregation: how many aggregations the state has seen, and this one; for FedAdam's bias.
        adapter: what the round started from, fp32.
        means: of at least one cohort. They are added up in the order of their names.
    """
    ordered = sorted(means, key=lambda mean: mean.name)
    replies = [_reply(adapter, mean) for mean in ordered]
    arrays, _ = strategy.aggregate_train(aggregation, replies)
    assert arrays is not None  # there is at least one reply
    return {name: torch.from_numpy(arrays[name].numpy()).float() for name in adapter}


def _reply(adapter: Mapping[str, Tensor], mean: CohortUpdate) -> Message:
    """A reply as Flower's strategies expect it: a tuned adapter, not its difference."""
    tuned = {name: tensor + mean.delta[name] for name, tensor in adapter.items()}
    weight = MetricRecord({NUM_EXAMPLES: mean.weight})
    content = RecordDict({ARRAYS: adapter_to_record(tuned), METRICS: weight})
    # Flower reads of these nothing but which reply holds an error.
    metadata = Metadata(0, mean.name, 0, SERVER_NODE_ID, mean.name, mean.name, 0.0, 1.0, "train")
    return message_with_metadata(metadata, content)


class _Eligible:
    """The part of a Grid that `configure_train` asks: who can be sampled."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Sequence[int]:
        return self._node_ids
