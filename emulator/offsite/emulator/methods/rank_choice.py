"""Dividing a number of parameters among the linear layers of a block: a rank for each, or dense.

A layer (m, n) costs r·(m + n) parameters at rank r and m·n as it is. The choice minimises the sum
of what the layers lose: it starts with the lowest rank of each and takes the step up that saves
most per parameter, of those that fit, again and again. Energies descend, so but for the last steps
no other ranks are better. The step after the highest rank that saves parameters is the dense layer;
a layer that no rank makes smaller stays dense. Nothing looks ahead to that step: it takes half a
layer's directions at once, and starves the other layers for it (0.08 nats worse at ratio 0.5, 0.04
better at 0.62, on SmolLM2-135M).

What a layer loses is weighed in the currency of the hidden states, to which attention and MLP each
add the output of their last layer: the share of its output that is lost, times the energy of that
last layer's output. The strongest direction counts on neither side: it is mostly the mean, which
any rank keeps. On SmolLM2-135M, equal shares for all layers (as in SVD-LLM) cost 0.15 nats more at
ratio 0.62 and as much at 0.5; shares of the whole energy, unweighed and looking ahead, 0.9 at 0.62.

Rules: ranks are multiples of 8, for matrix units; equal steps are taken in the order of the layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

RANK_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Options:
    """The forms of one layer by rising cost; `ranks` ends with None, the dense layer."""

    ranks: tuple[int | None, ...]
    costs: tuple[int, ...]

    @classmethod
    def of(cls, inputs: int, outputs: int) -> "Options":
        """Every multiple of 8 at which factoring saves parameters, and the dense layer."""
        largest = (inputs * outputs - 1) // (inputs + outputs)
        ranks = range(RANK_MULTIPLE, largest + 1, RANK_MULTIPLE)
        costs = [rank * (inputs + outputs) for rank in ranks]
        return cls((*ranks, None), (*costs, inputs * outputs))

    def losses(self, energy: torch.Tensor, importance: float) -> list[float]:
        """What each form loses of a layer with these energies (descending) and importance."""
        total = variation(energy)
        if total == 0.0:
            return [0.0] * len(self.ranks)
        kept = energy.cumsum(0)
        lost = ((kept[-1] - kept) / total * importance).tolist()
        return [0.0 if rank is None else lost[rank - 1] for rank in self.ranks]


def variation(energy: torch.Tensor) -> float:
    """The energy outside the strongest direction."""
    return float(energy[1:].sum())


def choose_ranks(
    options: Mapping[str, Options], losses: Mapping[str, Sequence[float]], budget: int
) -> dict[str, int | None]:
    """The rank of every layer, None for dense, at a cost of at most `budget` in all.

    The budget must cover the cheapest form of every layer.
    """
    form = dict.fromkeys(options, 0)
    left = budget - sum(option.costs[0] for option in options.values())
    assert left >= 0  # the caller refused such a ratio
    while True:
        best, best_gain, best_cost = None, -1.0, 0
        for path, at in form.items():
            if at + 1 == len(options[path].costs):
                continue
            cost = options[path].costs[at + 1] - options[path].costs[at]
            gain = (losses[path][at] - losses[path][at + 1]) / cost
            if cost <= left and gain > best_gain:
                best, best_gain, best_cost = path, gain, cost
        if best is None:
            return {path: options[path].ranks[at] for path, at in form.items()}
        form[best] += 1
        left -= best_cost
