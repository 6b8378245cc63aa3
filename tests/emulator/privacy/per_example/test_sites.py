"""Which modules are sites: found by what they do, refused when in doubt."""

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.pytorch_utils import Conv1D

from offsite.emulator.factored import FactoredLinear
from offsite.emulator.privacy.per_example.flat_buffer import FlatBuffer
from offsite.emulator.privacy.per_example.sites.layer_norm import LayerNormSite
from offsite.emulator.privacy.per_example.sites.linear import LinearSite
from offsite.emulator.privacy.per_example.sites.scale import ScaleSite
from offsite.secure.errors import ConfigError


class CentredOverRows(LlamaRMSNorm):
    """Takes elementwise what it is given, after rows have seen one another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0))


class Mixing(LlamaRMSNorm):
    """Every output depends on every weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.weight.sum()


class OfFixedShape(LlamaRMSNorm):
    """Gives all rows the vector of the first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.view(-1)[: x.shape[-1]]


NORMS = [LlamaRMSNorm(8), GemmaRMSNorm(8)]
OTHERS = [
    CentredOverRows(8),
    Mixing(8),
    OfFixedShape(8),
    nn.BatchNorm1d(8),
    nn.LayerNorm(8),
    nn.PReLU(8),
    nn.Linear(8, 8),
    nn.Embedding(8, 8),
    nn.ParameterList([torch.zeros(8)]),
    nn.Identity(),
    nn.RMSNorm(8),
]
"""`nn.RMSNorm` is in no decoder of the transformers library, and takes no vector a row."""


def name(module: nn.Module) -> str:
    return type(module).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("module", NORMS, ids=name)
def test_norms_are_sites(module: nn.Module, dtype: torch.dtype) -> None:
    assert ScaleSite.fits(module.to(dtype))


@pytest.mark.parametrize("module", OTHERS, ids=name)
def test_what_is_no_elementwise_norm_is_not(module: nn.Module) -> None:
    assert not ScaleSite.fits(module)


def test_linear_layers_are_sites_and_what_derives_from_them_is_not() -> None:
    factored = FactoredLinear(8, 8, 2, bias=True, device=torch.device("cpu"), dtype=torch.float32)
    assert LinearSite.fits(nn.Linear(8, 8)) and LinearSite.fits(Conv1D(8, 8))
    assert not LinearSite.fits(factored) and not LinearSite.fits(nn.Bilinear(8, 8, 8))


def test_layer_norms_are_sites_over_one_axis_and_with_a_weight() -> None:
    assert LayerNormSite.fits(nn.LayerNorm(8)) and LayerNormSite.fits(nn.LayerNorm(8, bias=False))
    assert not LayerNormSite.fits(nn.LayerNorm((8, 8)))
    assert not LayerNormSite.fits(nn.LayerNorm(8, elementwise_affine=False))
    assert not LayerNormSite.fits(nn.GroupNorm(2, 8))


def test_a_norm_with_a_second_input_is_refused_by_name() -> None:
    gated = MambaRMSNormGated(8, 8)
    assert ScaleSite.fits(gated)  # with one it is a norm like others
    buffer = FlatBuffer({"weight": gated.weight})
    site = ScaleSite("layers.0.norm", gated, {"weight": "weight"}, buffer)
    site.attach()
    x = torch.ones(2, 3, 8)
    assert gated(x, x).shape == x.shape  # an evaluation
    with (
        pytest.raises(ConfigError, match=r"layers\.0\.norm is called with 2 inputs"),
        buffer.recording(torch.arange(2), 3),
    ):
        gated(x, x)
    site.detach()
    assert gated(x, x).shape == x.shape
