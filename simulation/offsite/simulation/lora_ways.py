"""Aggregating LoRA where every client's factors are seen, and clients of several ranks.

    average            what a campaign of real edges does
    padded, slices     clients of several ranks; each tunes the first slices of what it is given
    residual           what the mean of factors misses goes into the frozen weights
                       (`FrozenChanges`)
    stack              all of it goes there, and the next round begins from untouched factors

A slice that no client of a round had stays as it was. Means are weighted as those of sums are. The
pure functions are `offsite.emulator.lora_aggregation`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offsite.coordinator.config_strategy import StrategyName
from offsite.edge_client.checkpoint import Checkpoint
from offsite.edge_client.outcome import TuningOutcome
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import Callbacks, Tune
from offsite.emulator.adapters.adapter import Adapter, TrainedFactors
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.lora_aggregation.aggregate import aggregate_lora
from offsite.emulator.lora_aggregation.factors import HIGH, LOW, LoraFactors, Update
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.rounds.plan import RoundPlan
from offsite.emulator.rounds.vector import Schema, from_vector, to_vector
from offsite.emulator.training.tokens import Example
from offsite.secure.aggregation.fixed_point import Values
from offsite.secure.errors import ConfigError
from offsite.simulation.frozen_changes import FrozenChanges
from offsite.simulation.visible import Seen

Tensors = Mapping[str, Tensor]
INTO_WEIGHTS = frozenset({LoraAggregation.RESIDUAL, LoraAggregation.STACK})
SEVERAL_RANKS = frozenset({LoraAggregation.PADDED, LoraAggregation.SLICES, LoraAggregation.STACK})
PLAIN_MEANS = frozenset({StrategyName.FEDAVG, StrategyName.FEDPROX})


def check_way(
    kind: LoraAggregation,
    ranks: Sequence[int],
    adapter: Adapter,
    strategies: Sequence[StrategyName],
    cohorts: int,
) -> None:
    """Raises ConfigError where a way cannot do what it promises with this release and settings."""
    if kind is LoraAggregation.AVERAGE and not ranks:
        return
    if not isinstance(adapter, LoraAdapter):
        raise ConfigError("--lora and --ranks: expected a release with adapter.kind lora")
    problems = []
    if kind in INTO_WEIGHTS and adapter.spec.trains is not TrainedFactors.AB:
        problems.append(f'{kind.value} is for adapter.trains "ab": with "b", average is exact')
    if kind in INTO_WEIGHTS and any(slot.is_middle for slot in adapter.layer_map.slots):
        problems.append(f"{kind.value} has no place in compressed blocks (emulator.middle_lora)")
    if ranks and kind not in SEVERAL_RANKS:
        problems.append(f"{kind.value} needs one rank: choose padded, slices or stack with --ranks")
    if ranks and not all(1 <= rank <= adapter.spec.rank for rank in ranks):
        problems.append(f"--ranks: expected 1 to {adapter.spec.rank}, that of the release")
    if others := [name.value for name in strategies if name not in PLAIN_MEANS]:
        problems.append(f"expected fedavg or fedprox beside it, found {', '.join(others)}")
    if cohorts != 1:
        problems.append(f"expected campaign.cohorts = 1, found {cohorts}")
    if problems:
        raise ConfigError("--lora: " + "; ".join(problems))


@dataclass(slots=True, eq=False)
class LoraWay:
    """One way, through one campaign."""

    kind: LoraAggregation
    adapter: LoraAdapter
    schema: Schema
    untouched: Tensors
    rank_of: Mapping[str, int]
    """By client."""
    frozen: FrozenChanges
    rolled_back: Callable[[], Sequence[int]]
    """Rounds that the gate did not keep."""
    _base: Tensors = field(default_factory=dict)

    def begin(self, plan: RoundPlan, base: Tensors, emulator: nn.Module) -> None:
        """A round starts from `base`: the emulator gets the frozen weights that belong to it."""
        self._base = base
        self.frozen.put_into(emulator, self.frozen.before(plan.round, self.rolled_back()))

    def tune_of(self, name: str, inner: Tune) -> Tune:
        """The loop of a client that can hold no more than its rank."""
        rank = self.rank_of[name]
        if rank == self.adapter.spec.rank:
            return inner

        def tuned(
            model: PreTrainedModel,
            parameters: Mapping[str, nn.Parameter],
            base: Tensors,
            examples: Sequence[Example],
            task: Task,
            *,
            checkpoint: Checkpoint | None = None,
            callbacks: Callbacks | None = None,
        ) -> TuningOutcome:
            start = {key: values * _mask(key, values, rank) for key, values in base.items()}
            hooks = []
            for key, parameter in parameters.items():
                kept = _only(_mask(key, parameter.detach(), rank))
                hooks.append(parameter.register_hook(kept))  # type: ignore[no-untyped-call]
            try:
                return inner(
                    model,
                    parameters,
                    start,
                    examples,
                    task,
                    checkpoint=checkpoint,
                    callbacks=callbacks,
                )
            finally:
                for hook in hooks:
                    hook.remove()

        return tuned

    def combine(self, plan: RoundPlan, seen: list[Seen]) -> Values:
        """What a round changes in the adapter (d,); the rest goes into the frozen weights."""
        updates = [self._factors(one) for one in seen]
        weights = [one.weight for one in seen]
        made = aggregate_lora(self.kind, updates, weights, self.adapter.spec.scaling)
        start = self.frozen.before(plan.round, self.rolled_back())
        if self.kind is LoraAggregation.STACK:
            self.frozen.add(
                plan.round, start, {layer: made.change(layer) for layer in made.factors}
            )
            after: Tensors = self.untouched
        else:
            self.frozen.add(plan.round, start, made.residual)
            after = self._tensors(made.factors)
        return to_vector(
            {name: after[name] - self._base[name] for name in self.schema}, self.schema
        )

    def _factors(self, one: Seen) -> Update:
        """A client's factors as it tuned them, of its own rank."""
        rank, delta = self.rank_of[one.client_id], from_vector(one.values, self.schema)
        tuned = {
            name: self._base[name] * _mask(name, self._base[name], rank) + delta[name]
            for name in self.schema
        }
        layers = [name.removesuffix(HIGH) for name in self.schema if name.endswith(HIGH)]
        found = {}
        for layer in layers:
            high = tuned[layer + HIGH][:, :rank]
            # Where A does not train, it is the same for all and of no consequence here.
            low = tuned[layer + LOW][:rank] if layer + LOW in tuned else torch.zeros(rank, 1)
            found[layer] = LoraFactors(low, high)
        return found

    def _tensors(self, factors: Update) -> dict[str, Tensor]:
        """Factors as adapter tensors; slices that nobody had are those of before."""
        made = {name: values.clone() for name, values in self._base.items()}
        for layer, one in factors.items():
            made[layer + HIGH][:, : one.rank] = one.high
            if layer + LOW in made:
                made[layer + LOW][: one.rank] = one.low
        return made


def _mask(name: str, values: Tensor, rank: int) -> Tensor:
    """1 in the first `rank` slices of a factor, 0 in the others."""
    axis = 0 if name.endswith(LOW) else 1
    kept = (torch.arange(values.shape[axis], device=values.device) < rank).to(values.dtype)
    return kept[:, None] if axis == 0 else kept[None, :]


def _only(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask
