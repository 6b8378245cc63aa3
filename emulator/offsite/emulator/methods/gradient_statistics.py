"""What one forward and backward pass over calibration tokens says about linear layers.

For a layer y = W·x and the gradient g = ∂loss/∂y of the summed language loss, over all tokens:

    inputs     E[x·xᵀ]  (in, in)     what the layer receives
    gradients  E[g·gᵀ]  (out, out)   what the loss asks of its outputs
    slope      E[g·xᵀ]  (out, in)    the gradient of the mean loss in the weight

The first two are the Kronecker factors of the Fisher matrix (K-FAC). What is summed for the
channels of an MLP stands in `direction_scores.ChannelMoments`.

Notable: in fp32 the matrices of a middle take several times the bytes of its attention in bf16, so
they are collected for a few blocks at a time (`groups`), upwards, one pass each
(`backward_stream`). How many blocks changes nothing in the result. A group is bounded by a share of
the model, since a build may take 1.3 times the model's bytes in all.

Source: K-FAC, arXiv 1503.05671, section 3, with the empirical Fisher of the calibration text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from offsite.emulator.linear import Linear, features
from offsite.emulator.methods.block_activations import require_finite

GROUP_SHARE = 0.1
"""Of the model's own bytes, for the matrices held at a time; one block is always taken."""
GROUP_FLOOR_BYTES = 128 << 20
"""Below it nothing is gained: Python with torch takes more than twice that before it starts."""


@dataclass(slots=True)
class LayerMoments:
    """Sums over tokens, then means: see the module. fp32, on the model's device."""

    inputs: torch.Tensor
    gradients: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def zeros(cls, layer: Linear) -> "LayerMoments":
        """For a layer that has seen nothing."""
        inputs, outputs = features(layer)
        shapes = ((inputs, inputs), (outputs, outputs), (outputs, inputs))
        return cls(*(torch.zeros(shape, device=layer.weight.device) for shape in shapes))

    def see(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """Adds some tokens."""
        self.inputs.addmm_(x.T, x)
        self.gradients.addmm_(g.T, g)
        self.slope.addmm_(g.T, x)

    def divide(self, tokens: int, where: str) -> None:
        """From sums to means. Raises ConfigError that says where they are not finite."""
        for moment in (self.inputs, self.gradients, self.slope):
            moment.div_(tokens)
            require_finite(where, moment)


def moments_bytes(layers: Sequence[Linear]) -> int:
    """What the moments of these layers take."""
    sizes = [features(layer) for layer in layers]
    return sum(4 * (i * i + o * o + i * o) for i, o in sizes)


def group_limit(model_bytes: int) -> int:
    """Bytes of matrices that may be held at a time beside a model."""
    return max(int(GROUP_SHARE * model_bytes), GROUP_FLOOR_BYTES)


def groups(sizes: Mapping[int, int], limit: int) -> list[list[int]]:
    """Ascending keys, cut so that the sizes of a group sum to at most `limit`; one key at least."""
    result: list[list[int]] = []
    total = 0
    for index in sorted(sizes):
        total += sizes[index]
        if not result or total > limit:
            result.append([])
            total = sizes[index]
        result[-1].append(index)
    return result
