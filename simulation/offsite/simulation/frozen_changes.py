"""What exact ways to aggregate LoRA add to frozen weights, round by round.

`residual` and `stack` (`emulator.lora_aggregation`) make a change that has no low rank. It belongs
to the frozen weight of a layer: in the emulator, on which clients tune from the next round on, and
in the full model, on which the gate judges. Here it is kept per round, so that a round that is
rolled back takes it along.

A weight is always computed anew from what it was, W <- W0 + R, so nothing of it drifts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.linear import weight_out_in

Change = Mapping[str, torch.Tensor]
"""By the wire name of a layer: (out, in) fp32."""


@dataclass(slots=True, eq=False)
class FrozenChanges:
    """Of one campaign."""

    adapter: LoraAdapter
    _after: dict[int, Change] = field(default_factory=lambda: {0: {}})
    """By round; 0: before the first."""
    _originals: dict[str, torch.Tensor] = field(default_factory=dict)

    def before(self, round_number: int, rolled_back: Sequence[int]) -> Change:
        """What a round starts from: that of the last round that was kept."""
        kept = [n for n in self._after if n < round_number and n not in rolled_back]
        return self._after[max(kept)]

    def add(self, round_number: int, start: Change, more: Change) -> None:
        """What a round adds to what it started from."""
        names = start.keys() | more.keys()
        self._after[round_number] = {n: _sum(start.get(n), more.get(n)) for n in sorted(names)}

    def of(self, round_number: int) -> Change:
        """What a round made, kept or not."""
        return self._after[round_number]

    @torch.no_grad()
    def put_into(self, emulator: nn.Module, change: Change) -> None:
        """The emulator's weights with this change, in the place of whatever was there."""
        for target in self.adapter.targets(emulator) if change or self._originals else ():
            weight = weight_out_in(target.layer)
            original = self._originals.setdefault(target.wire_name, weight.detach().clone())
            weight.copy_(_changed(original, change.get(target.wire_name)))

    @contextmanager
    def inside(self, model: nn.Module, change: Change) -> Iterator[None]:
        """The full model with this change, for as long as it is looked at."""
        originals: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for target in self.adapter.targets(model) if change else ():
                weight = weight_out_in(target.layer)
                originals.append((weight, weight.detach().clone()))
                weight.copy_(_changed(originals[-1][1], change.get(target.wire_name)))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, original in originals:
                    weight.copy_(original)


def _changed(original: torch.Tensor, change: torch.Tensor | None) -> torch.Tensor:
    if change is None:
        return original
    return (original.float() + change.to(original.device)).to(original.dtype)


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor:
    if one is None or other is None:
        found = one if other is None else other
        assert found is not None  # the name is that of one of them
        return found
    return one + other
