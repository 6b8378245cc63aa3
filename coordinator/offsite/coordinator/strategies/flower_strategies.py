"""Flower's strategy objects, by name and settings, and what they remember between rounds.

Notable decisions:

- They are Flower's own and unchanged, with one choice of ours: Bulyan's first step. The paper takes
  Krum's best update away and asks Krum again until enough are chosen (El Mhamdi et al., arXiv
  1802.07927, section 4); Flower takes all of one ranking. Flower lets the rule be chosen, and ours is
  the paper's.
- Every node that is given is asked; who is eligible is decided by the campaign, so Flower's own
  sampling always takes all.
- FedAvgM remembers its momentum, FedAdam and FedYogi the moments m and v; the others nothing. It is
  saved beside the adapter after every round: each round begins with new strategy objects that are
  given the state of the last one, so a restart is no special case.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)
from torch import Tensor

from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.coordinator.strategies.fit import chosen_of
from offsite.coordinator.strategies.krum_selection import select_one_after_another
from offsite.emulator.rounds.flower_internals import quieten
from offsite.emulator.rounds.instruction import ARRAYS, CONFIG, adapter_to_record
from offsite.emulator.schema import TensorSpec

MOMENTUM = "momentum"
MOMENTS = ("m_t", "v_t")
"""Flower's names."""


def make_strategy(section: StrategySection, cohorts: int = 1) -> FedAvg:
    """A new strategy without state, for so many means."""
    quieten()
    made = _make(section, cohorts)
    made.min_train_nodes = made.min_available_nodes = 1
    made.arrayrecord_key, made.configrecord_key = ARRAYS, CONFIG
    return made


def _make(section: StrategySection, cohorts: int) -> FedAvg:
    hostile = section.hostile_cohorts
    match section.name:
        case StrategyName.FEDAVG:
            return FedAvg()
        case StrategyName.FEDAVGM:
            rate, momentum = section.server_rate, section.server_momentum
            return FedAvgM(server_learning_rate=rate, server_momentum=momentum)
        case StrategyName.FEDPROX:
            return FedProx(proximal_mu=section.proximal_mu)
        case StrategyName.FEDADAM | StrategyName.FEDYOGI:
            adaptive = FedAdam if section.name is StrategyName.FEDADAM else FedYogi
            return adaptive(
                eta=section.server_rate,
                beta_1=section.beta_1,
                beta_2=section.beta_2,
                tau=section.tau,
            )
        case StrategyName.FEDMEDIAN:
            return FedMedian()
        case StrategyName.FEDTRIMMEDAVG:
            return FedTrimmedAvg(beta=section.trim_share)
        case StrategyName.KRUM:
            return Krum(num_malicious_nodes=hostile)
        case StrategyName.MULTIKRUM:
            chosen = chosen_of(section, cohorts)
            return MultiKrum(num_malicious_nodes=hostile, num_nodes_to_select=chosen)
        case StrategyName.BULYAN:
            rule = select_one_after_another
            return Bulyan(num_malicious_nodes=hostile, selection_rule=rule)


def state_kinds(section: StrategySection) -> tuple[str, ...]:
    """What the strategy remembers of every tensor."""
    match section.name:
        case StrategyName.FEDAVGM if section.server_momentum:
            return (MOMENTUM,)
        case StrategyName.FEDADAM | StrategyName.FEDYOGI:
            return MOMENTS
        case _:
            return ()


def state_schema(
    section: StrategySection, adapter: Mapping[str, TensorSpec]
) -> dict[str, TensorSpec]:
    """The schema of the state after a round, `<kind>/<tensor>`."""
    return {
        f"{kind}/{name}": spec for kind in state_kinds(section) for name, spec in adapter.items()
    }


def give_state(strategy: FedAvg, origin: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Say where the round starts and what was remembered, of the same tensors.

    Args:
        origin: what replies are differences from.
        state: empty in the first round, or what `take_state` gave; may hold other tensors, too.
    """
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = adapter_to_record(origin)
        if state:
            strategy.momentum_vector = [state[f"{MOMENTUM}/{name}"].numpy() for name in origin]
    elif isinstance(strategy, FedAdam | FedYogi):
        strategy.current_arrays = {name: tensor.numpy() for name, tensor in origin.items()}
        for moment in MOMENTS if state else ():
            values = {name: state[f"{moment}/{name}"].numpy() for name in origin}
            setattr(strategy, moment, values)


def take_state(strategy: FedAvg, names: Sequence[str]) -> dict[str, Tensor]:
    """What the strategy remembers of these tensors, fp32."""
    if isinstance(strategy, FedAvgM):
        momentum = strategy.momentum_vector or []
        kept = {MOMENTUM: dict(zip(names, momentum, strict=bool(momentum)))}
    elif isinstance(strategy, FedAdam | FedYogi):
        kept = {moment: getattr(strategy, moment) for moment in MOMENTS}
    else:
        return {}
    return {
        f"{kind}/{name}": torch.from_numpy(np.ascontiguousarray(array, np.float32))
        for kind, arrays in kept.items()
        for name, array in arrays.items()
    }
