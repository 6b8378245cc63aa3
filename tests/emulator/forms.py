"""Every form that a compression may give a block, in methods that only a test would use.

`planned(form)` stands in for a real method: `monkeypatch.setattr(build, "make_method", ...)`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator import build
from offsite.emulator.blocks import in_attention
from offsite.emulator.linear import linear_layers, weight_out_in
from offsite.emulator.methods.method import Harmoniser, MethodName
from offsite.emulator.methods.mlp import find_mlp
from offsite.emulator.progress import Report
from offsite.emulator.weights import named_weights

RANK = 5


@dataclass(frozen=True)
class Form:
    """A compression made by hand."""

    pick: Callable[[Sequence[int]], Sequence[int]] = tuple
    change: Callable[[nn.Module, dict[str, torch.Tensor]], dict[str, torch.Tensor]] = (
        lambda _, weights: weights
    )
    maps: Callable[[Sequence[int]], Sequence[int]] = lambda _: ()


def factor_all(
    block: nn.Module,
    weights: dict[str, torch.Tensor],
    accept: Callable[[nn.Module, str], bool] = lambda *_: True,
) -> dict[str, torch.Tensor]:
    """Random factors of rank `RANK` for every linear layer that is accepted."""
    for path, layer in linear_layers(block):
        if accept(block, path):
            outputs, inputs = weight_out_in(layer).shape
            del weights[f"{path}.weight"]
            weights[f"{path}.down.weight"] = random(RANK, inputs, seed=len(weights))
            weights[f"{path}.up.weight"] = random(outputs, RANK, seed=len(weights))
    return weights


def narrow(block: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The MLP with its first 24 channels."""
    return find_mlp(block).select(block, weights, torch.arange(24))


def narrow_and_factored(
    block: nn.Module, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Attention factored, MLP narrow and its down projection factored as well."""
    mlp = find_mlp(block)
    down = narrow(block, weights)
    hidden = weights[f"{mlp.down}.weight"].numel() // mlp.channels
    down = factor_all(block, down, in_attention)
    del down[f"{mlp.down}.weight"]
    down[f"{mlp.down}.down.weight"] = random(RANK, 24, seed=1)
    down[f"{mlp.down}.up.weight"] = random(hidden, RANK, seed=2)
    return down


def random(*shape: int, seed: int) -> torch.Tensor:
    """Small fp32 values."""
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FORMS: dict[str, Form] = {
    "factored": Form(change=factor_all),
    "narrow": Form(change=narrow),
    "narrow-factored": Form(change=narrow_and_factored),
    "shared": Form(pick=lambda middle: (middle[0],) * 2 + (middle[-1],) * (len(middle) - 2)),
    "harmonised": Form(pick=lambda middle: middle[1:2], maps=lambda middle: (middle[1], 4)),
    "all": Form(
        pick=lambda middle: (*(middle[0],) * (len(middle) - 1), middle[-1]),
        change=narrow_and_factored,
        maps=lambda middle: (0, middle[-1]),
    ),
}


@dataclass(frozen=True)
class Planned:
    """A method that does what a form says, and the compression it plans."""

    form: Form
    middle: Sequence[int] = ()
    hidden: int = 0
    name: MethodName = MethodName.UNIFORM_DROP
    needs_calibration: bool = False
    asked: list[int] = field(default_factory=list)

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> "Planned":
        return Planned(self.form, middle, model.config.hidden_size)

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(self.form.pick(self.middle))

    @property
    def harmonisers(self) -> Mapping[int, Harmoniser]:
        return {
            index: Harmoniser(
                random(3, self.hidden, seed=index), random(self.hidden, 3, seed=index + 9)
            )
            for index in self.form.maps(self.middle)
        }

    def weights(self, index: int, block: nn.Module) -> dict[str, torch.Tensor]:
        self.asked.append(index)
        assert len(set(self.asked)) == len(self.asked), "asked twice for a block"
        copies = {name: tensor.clone() for name, tensor in named_weights(block).items()}
        return self.form.change(block, copies)


@contextmanager
def planned(form: Form) -> Iterator[None]:
    """Lets `build_emulator` compress by a form, whatever method it is told."""
    with mock.patch.object(build, "make_method", lambda *_: Planned(form)):
        yield
