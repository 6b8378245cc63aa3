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
- A client says itself how many examples it has, and nobody can check it. So an update weighs at most
  `MOST_TIMES_MEDIAN` times the (lower) median of what the round's clients claim: one claim cannot
  replace everybody's update. A client with honestly more data than that weighs less than its share.
- FedAdam computes in float64 where NumPy promotes; the next adapter is fp32 like the wire.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg
from torch import Tensor

from offsite.coordinator.config import StrategyName
from offsite.emulator.rounds.flower_internals import message_with_metadata, quieten
from offsite.emulator.rounds.instruction import (
    ARRAYS,
    CONFIG,
    METRICS,
    NUM_EXAMPLES,
    PLAN,
    adapter_to_record,
)
from offsite.emulator.rounds.update import Update
from offsite.emulator.schema import TensorSpec

SERVER_LEARNING_RATE = 1e-3
TAU = 1e-5
MOST_TIMES_MEDIAN = 10
MOMENTS = ("m_t", "v_t")


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
    plan: bytes,
    node_ids: Sequence[int],
) -> Iterable[Message]:
    """One instruction to each node, as the strategy configures it."""
    config = ConfigRecord({PLAN: plan})
    grid = cast(Grid, _Eligible(sorted(node_ids)))
    return strategy.configure_train(round_number, adapter_to_record(adapter), config, grid)


def aggregate(
    strategy: FedAvg,
    aggregation: int,
    adapter: Mapping[str, Tensor],
    updates: Sequence[tuple[Metadata, Update]],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The next adapter and the clients' mean metrics.

    Args:
        aggregation: how many aggregations the state has seen, and this one; for FedAdam's bias.
        adapter: what the round started from, fp32.
        updates: each with the metadata of the reply that it came in. They are added up in the order
            of client ids, so the result does not depend on who answered first.

    Guarantees:
        An update weighs at most ten times the lower median of the examples that the round's clients
        claim (test_a_claim_of_many_examples_weighs_at_most_ten_times_the_median).
    """
    ordered = sorted(updates, key=lambda pair: pair[1].client_id)
    shared = set.intersection(*(set(update.metrics) for _, update in ordered))
    most = MOST_TIMES_MEDIAN * statistics.median_low(u.num_examples for _, u in ordered)
    replies = [
        message_with_metadata(
            metadata, _tuned(adapter, update, min(update.num_examples, most), sorted(shared))
        )
        for metadata, update in ordered
    ]
    arrays, metrics = strategy.aggregate_train(aggregation, replies)
    assert arrays is not None  # there is at least one reply
    means = {name: float(cast(float, value)) for name, value in (metrics or {}).items()}
    return {name: torch.from_numpy(arrays[name].numpy()).float() for name in adapter}, means


def _tuned(
    adapter: Mapping[str, Tensor], update: Update, weight: int, metrics: Sequence[str]
) -> RecordDict:
    """A reply as Flower's strategies expect it: the client's adapter, not its difference."""
    tuned = {name: tensor + update.delta[name] for name, tensor in adapter.items()}
    values = MetricRecord({name: update.metrics[name] for name in metrics})
    values[NUM_EXAMPLES] = weight
    return RecordDict({ARRAYS: adapter_to_record(tuned), METRICS: values})


class _Eligible:
    """The part of a Grid that `configure_train` asks: who can be sampled."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Sequence[int]:
        return self._node_ids
