"""NF4 is the published one: code points, layout and values equal those of bitsandbytes."""

import json
from statistics import NormalDist

import pytest
import torch
from tests.vectors.packing.generate import VECTOR, answer, hex_of, tensor

from offsite.emulator.packing.nf4 import CODE
from offsite.emulator.packing.packing import Packing, pack, unpack


def test_the_code_points_are_quantiles_of_the_normal_distribution() -> None:
    """QLoRA, appendix E: 8 quantiles above 0, 7 below, between 0.5 and 0.9677, over the largest."""

    def quantiles(count: int) -> list[float]:
        step = (0.9677083 - 0.5) / count
        return [NormalDist().inv_cdf(0.9677083 - step * i) for i in range(count)]

    points = sorted([*quantiles(8), 0.0, *(-value for value in quantiles(7))])
    assert CODE == pytest.approx([value / points[-1] for value in points], abs=1e-6)


def vector() -> dict[str, object]:
    document: dict[str, object] = json.loads(VECTOR.read_text())
    return document


def test_values_and_layout_are_those_of_bitsandbytes() -> None:
    expected = vector()
    parts = pack(tensor(), Packing.NF4)
    assert hex_of(torch.tensor(CODE)) == expected["code"]
    assert hex_of(parts["nf4"])[:-2] == str(expected["packed"])[:-2]
    assert hex_of(parts["scale"]) == expected["absmax"]
    values = unpack(parts, tensor().shape, Packing.NF4)
    assert hex_of(values) == expected["values"]


def test_the_half_byte_behind_an_odd_number_is_zero() -> None:
    assert tensor().numel() % 2
    assert int(pack(tensor(), Packing.NF4)["nf4"][-1]) & 0xF == 0


def test_the_vector_is_what_bitsandbytes_answers_today() -> None:
    pytest.importorskip("bitsandbytes", reason="the vector stands in for it")
    assert answer() | {"made_by": ""} == vector() | {"made_by": ""}


def test_random_weights_come_out_as_bitsandbytes_has_them() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="the vector stands in")
    # Rows of whole blocks: where they are not, its AVX-512 kernel for CPUs (0.50.2) takes the scale
    # of another block, and its values are three times as far from the weights as they should be.
    weights = torch.randn(96, 192, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weights, blocksize=64, quant_type="nf4")
    parts = pack(weights, Packing.NF4)
    assert torch.equal(parts["scale"], state.absmax)
    # It multiplies by the reciprocal of the scale: a value in the middle of two may differ.
    assert (parts["nf4"] != packed.flatten()).sum() <= 2
    expected = functional.dequantize_4bit(packed, state)
    assert (unpack(parts, weights.shape, Packing.NF4) != expected).sum() <= 2
