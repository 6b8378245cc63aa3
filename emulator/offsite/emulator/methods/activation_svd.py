"""Activation-aware SVD: every linear layer of the middle as a product of two thin ones.

W (out, in) becomes up·down of the rank that loses least of its outputs over the calibration tokens,
E‖W·x − up·down·x‖². All blocks stay, and every block keeps the same share of its parameters; within
a block, ranks go where the hidden states need them, and layers may stay dense (`rank_choice`).

Notable decisions:

* Inputs are those in the full model, not those after the layers before have been factored: errors
  are not chased through the model, and blocks can be built in any pace.
* Every token counts alike. Weights against the few with enormous activations, as the harmonisers
  have them, made SmolLM2-135M 0.1 nats worse here.
* One block at a time: the moments of a block exist while its weights are made (`block_stream`), at
  most one (m, m) matrix in fp64 per layer with m = min(in, out).
* Biases, norms and everything else that is not a matrix stay, so there is a smallest ratio.

Source: SVD-LLM (arXiv 2403.07378); ASVD (arXiv 2312.05821); as an emulator: EMLoC
(arXiv 2506.12015).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, in_attention, parameter_count
from offsite.emulator.linear import Linear, features, linear_layers, weight_out_in
from offsite.emulator.methods.block_activations import (
    check_calibration,
    receiving,
    require_finite,
    tokens_of,
)
from offsite.emulator.methods.block_stream import BlockStream
from offsite.emulator.methods.low_rank_fit import (
    Spectrum,
    ridge_of,
    spectrum_by_inputs,
    spectrum_by_outputs,
)
from offsite.emulator.methods.method import Harmoniser, MethodName
from offsite.emulator.methods.rank_choice import (
    RANK_MULTIPLE,
    Options,
    choose_ranks,
    variation,
)
from offsite.emulator.progress import Report
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError

RIDGE_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class ActivationSvd:
    """See `Method`. The ratio is met from below, to within one step of 8 ranks in a block."""

    name: MethodName = MethodName.ACTIVATION_SVD
    needs_calibration: bool = True

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> "FactoredBlocks":
        if ratio >= 1.0:
            return FactoredBlocks(tuple(middle))
        modules = find_blocks(model).modules
        budgets = {index: budget_of(modules[index], ratio) for index in middle}
        check_calibration(self.name, calibration)
        stream = BlockStream(model, middle, calibration, report)
        return FactoredBlocks(tuple(middle), Factoring(stream, budgets))


@dataclass(frozen=True, slots=True)
class Factoring:
    """What is needed to factor the blocks one after the other."""

    stream: BlockStream
    budgets: Mapping[int, int]  # parameters for the linear layers of each block


@dataclass(frozen=True, slots=True)
class FactoredBlocks:
    """Every middle block; layers are factored when weights are asked for, in ascending order."""

    kept: tuple[int, ...]
    factoring: Factoring | None = None  # None: every block stays as it is
    harmonisers: Mapping[int, Harmoniser] = field(default_factory=dict)

    def weights(self, index: int, block: nn.Module) -> dict[str, torch.Tensor]:
        weights = {name: tensor.clone() for name, tensor in named_weights(block).items()}
        if self.factoring is None:
            return weights
        layers = dict(linear_layers(block))
        spectra = layer_spectra(
            layers, self.factoring.stream.advance(index, block), f"block {index}"
        )
        options = {path: Options.of(*features(layer)) for path, layer in layers.items()}
        importance = importances(block, spectra)
        losses = {p: options[p].losses(spectra[p].energy, importance[p]) for p in layers}
        for path, rank in choose_ranks(options, losses, self.factoring.budgets[index]).items():
            if rank is not None:
                dense = weights.pop(f"{path}.weight")
                parts = spectra[path].low_rank(weight_out_in(layers[path]), rank)
                for part, tensor in zip(("down", "up"), parts, strict=True):
                    weights[f"{path}.{part}.weight"] = tensor.to(dense.dtype).contiguous()
        return weights


def budget_of(block: nn.Module, ratio: float) -> int:
    """Parameters for the block's linear layers so that `ratio` of the block stays.

    Raises ConfigError that names the smallest ratio which factoring can reach.
    """
    options = [Options.of(*features(layer)) for _, layer in linear_layers(block)]
    total = parameter_count(block)
    fixed = total - sum(option.costs[-1] for option in options)
    least = fixed + sum(min(option.costs) for option in options)
    if ratio * total < least:
        smallest = math.ceil(1000 * least / total) / 1000
        raise ConfigError(
            f"activation_svd cannot keep only {ratio:g} of the middle: ranks are at least"
            f" {RANK_MULTIPLE} and what is not a linear layer stays, so the smallest ratio for"
            f" this model is {smallest:.3f}; or use uniform_drop"
        )
    return int(ratio * total) - fixed


def importances(block: nn.Module, spectra: Mapping[str, Spectrum]) -> dict[str, float]:
    """For every layer, what its half of the block (attention or MLP) adds to the hidden states.

    That is the output of the half's last linear layer.
    """
    last = {in_attention(block, path): path for path in spectra}
    added = {half: variation(spectra[path].energy) for half, path in last.items()}
    return {path: added[in_attention(block, path)] for path in spectra}


def layer_spectra(
    layers: Mapping[str, Linear], batches: Iterable[None], where: str
) -> dict[str, Spectrum]:
    """The spectrum of every layer over what it receives while `batches` is run through.

    `where` names the block in the error for numbers that are not finite.
    """
    moments = Moments(layers, where)
    received: dict[str, torch.Tensor] = {}
    with receiving(layers, received.__setitem__):
        for _ in batches:
            moments.add(received)
            received.clear()
    return {path: moments.spectrum(path) for path in layers}


class Moments:
    """Sums over the inputs of layers, fp64 on the layers' device; (m, m) each, m = min(in, out).

    A layer with fewer outputs than inputs sums its outputs' second moment, another one that of its
    inputs, which layers that receive the same tensor (gate and up) share.
    """

    def __init__(self, layers: Mapping[str, Linear], where: str) -> None:
        self._layers, self._where = layers, where
        self._sums: dict[str, torch.Tensor] = {}
        self._squares: dict[str, float] = {}  # of the inputs, so the trace of their moment
        self._source: dict[str, str] = {}  # the layer that sums this one's inputs

    def add(self, received: Mapping[str, torch.Tensor]) -> None:
        """The inputs of all layers for one batch."""
        summed: dict[int, str] = {}
        for path, layer in self._layers.items():
            if path not in received:
                raise ConfigError(
                    f"activation_svd: {path} receives nothing when its block runs; use uniform_drop"
                )
            rows = tokens_of(received[path])
            inputs, outputs = features(layer)
            squares = float(rows.square().sum(dtype=torch.float64))
            self._squares[path] = self._squares.get(path, 0.0) + squares
            if outputs < inputs:
                self._source[path] = path
                self._sum(path, rows @ weight_out_in(layer).float().T)
            elif id(received[path]) not in summed:
                summed[id(received[path])] = self._source[path] = path
                self._sum(path, rows)
            else:
                self._source[path] = summed[id(received[path])]

    def _sum(self, path: str, rows: torch.Tensor) -> None:
        moment = (rows.T @ rows).double()
        self._sums[path] = self._sums[path] + moment if path in self._sums else moment

    def spectrum(self, path: str) -> Spectrum:
        """Of one layer, with a ridge on its inputs."""
        layer = self._layers[path]
        weight = weight_out_in(layer).double()
        inputs, outputs = features(layer)
        ridge = ridge_of(self._squares[path], inputs, RIDGE_SHARE)
        moment = self._sums[self._source[path]]
        require_finite(f"{path} of {self._where}", weight, moment, torch.tensor(ridge))
        if outputs < inputs:
            return spectrum_by_outputs(moment + ridge * (weight @ weight.T))
        identity = torch.eye(inputs, dtype=moment.dtype, device=moment.device)
        return spectrum_by_inputs(weight, moment + ridge * identity)
