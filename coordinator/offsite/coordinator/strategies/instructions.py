"""Instructions to tune, one for each node, as the strategy configures them.

Flower's FedProx writes its mu into the instruction's configuration. Edges do not read it there: what
they obey is the signed plan, which says the same (`RoundPlan.proximal_mu`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from offsite.coordinator.config_strategy import StrategySection
from offsite.coordinator.strategies.flower_strategies import make_strategy
from offsite.emulator.rounds.instruction import adapter_to_record


def instructions(
    section: StrategySection,
    round_number: int,
    adapter: Mapping[str, Tensor],
    config: Mapping[str, bytes],
    node_ids: Sequence[int],
) -> Iterable[Message]:
    """One instruction to each node; `config` is what it says beside the adapter."""
    grid = cast(Grid, _Eligible(sorted(node_ids)))
    record = ConfigRecord(dict(config))
    strategy = make_strategy(section)
    return strategy.configure_train(round_number, adapter_to_record(adapter), record, grid)


class _Eligible:
    """The part of a Grid that `configure_train` asks: who can be sampled."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Sequence[int]:
        return self._node_ids
