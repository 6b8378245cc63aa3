"""Packing loses little, repeats itself exactly, and unpacking trusts nothing."""

import pytest
import torch

from offsite.emulator.packing.packing import (
    MAX_SCALE,
    Packing,
    is_packable,
    pack,
    packed_specs,
    unpack,
)
from offsite.emulator.schema import TensorSpec, spec_of
from offsite.secure.errors import ConfigError, IntegrityError, PeerError

PACKINGS = [Packing.INT8, Packing.NF4]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(7, 131), (64, 64), (1, 1), (5, 3, 2), (3, 65)]


def weights(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of very different sizes, one of them 0."""
    generator = torch.Generator().manual_seed(len(shape))
    sizes = 10.0 ** torch.randint(-6, 4, (shape[0],), generator=generator)
    sizes[0] = 0.0 if shape[0] > 1 else 1.0
    values = torch.randn(shape, generator=generator)
    return (values * sizes.view(-1, *[1] * (len(shape) - 1))).to(dtype)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_parts_are_as_stated(packing: Packing, shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        parts = pack(weights(shape), packing, axis)
        found = {suffix: spec_of(part) for suffix, part in parts.items()}
        assert found == packed_specs(shape, packing, axis)
        assert unpack(parts, shape, packing).shape == shape


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_again_changes_nothing(
    packing: Packing, dtype: torch.dtype, axis: int, shape: tuple[int, ...]
) -> None:
    once = unpack(pack(weights(shape, dtype), packing, axis), shape, packing).to(dtype)
    twice = unpack(pack(once, packing, axis), shape, packing).to(dtype)
    assert torch.equal(once, twice)


def test_int8_is_off_by_half_a_step_of_its_channel() -> None:
    original = weights((40, 500))
    for axis in (0, 1):
        found = unpack(pack(original, Packing.INT8, axis), original.shape, Packing.INT8)
        step = original.abs().amax(axis, keepdim=True) / 127
        assert bool(((found - original).abs() <= 0.501 * step).all())


def test_int8_gives_every_channel_its_own_scale() -> None:
    original = weights((40, 500))
    parts = pack(original, Packing.INT8)
    largest = parts["int8"].abs().amax(1)
    assert largest[0] == 0 and bool((largest[1:] == 127).all())


def test_a_scale_of_int8_times_any_value_is_exact_in_fp32() -> None:
    """So what is unpacked is the same number everywhere, and packs to the same scale again."""
    original = torch.randn(5000, 4, generator=torch.Generator().manual_seed(1))
    scale = pack(original, Packing.INT8)["scale"]
    for value in (127, 113, 3):
        assert torch.equal((scale * value).double(), scale.double() * value)


def test_nf4_keeps_the_largest_of_a_block_exactly() -> None:
    original = weights((3, 64 * 5))
    found = unpack(pack(original, Packing.NF4), original.shape, Packing.NF4)
    peaks = original.view(-1, 64).abs().argmax(1, keepdim=True)
    assert torch.equal(found.view(-1, 64).gather(1, peaks), original.view(-1, 64).gather(1, peaks))


@pytest.mark.parametrize(("packing", "bits"), [(Packing.INT8, 8.04), (Packing.NF4, 4.5)])
def test_what_a_weight_takes(packing: Packing, bits: float) -> None:
    shape = (1024, 1024)
    specs = packed_specs(shape, packing)
    found = 8 * sum(spec.num_bytes for spec in specs.values()) / (1024 * 1024)
    assert found == pytest.approx(bits, abs=0.01)


def test_packing_reads_and_does_not_write() -> None:
    original = weights((9, 70))
    before = original.clone()
    for packing in PACKINGS:
        pack(original, packing)
        pack(original.T, packing)
    assert torch.equal(original, before)
    for packing in PACKINGS:  # a layout of its own makes no difference
        transposed = pack(original.T, packing)
        copied = pack(original.T.contiguous(), packing)
        assert all(torch.equal(transposed[suffix], copied[suffix]) for suffix in copied)


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("BF16", (4, 4), True),
        ("F32", (2, 2, 2), True),
        ("BF16", (4,), False),
        ("I8", (4, 4), False),
        ("F32", (0, 4), False),
    ],
)
def test_what_can_be_packed(dtype: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_packable(TensorSpec(dtype, shape)) is expected


@pytest.mark.parametrize(("shape", "axis"), [((4,), 0), ((0, 4), 1), ((4, 4), 2), ((), 0)])
def test_what_cannot_be_packed_has_no_parts(shape: tuple[int, ...], axis: int) -> None:
    with pytest.raises(PeerError, match="two axes or more"):
        packed_specs(shape, Packing.INT8, axis)


def test_none_has_no_parts() -> None:
    assert packed_specs((4, 4), Packing.NONE) == {}
    with pytest.raises(ConfigError, match="not packed"):
        pack(torch.ones(4, 4), Packing.NONE)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1e-3, 2 * MAX_SCALE])
def test_a_scale_that_is_none_is_refused(packing: Packing, scale: float) -> None:
    parts = pack(weights((8, 64)), packing)
    parts["scale"].view(-1)[3] = scale
    with pytest.raises(IntegrityError, match="expected scales from 0"):
        unpack(parts, (8, 64), packing)


@pytest.mark.parametrize("packing", PACKINGS)
def test_parts_of_another_tensor_are_refused(packing: Packing) -> None:
    parts = pack(weights((8, 64)), packing)
    values = next(suffix for suffix in parts if suffix != "scale")
    wrong = [
        {values: parts[values]},
        {**parts, "more": parts["scale"]},
        {**parts, values: parts[values].float()},
        {**parts, values: parts[values].flatten()[:-1]},
        {**parts, "scale": parts["scale"].double()},
        {**parts, "scale": parts["scale"].flatten()[:-1]},
    ]
    for broken in wrong:
        with pytest.raises(IntegrityError, match="expected"):
            unpack(broken, (8, 64), packing)
    with pytest.raises(IntegrityError):
        unpack(parts, (8, 128), packing)


def test_the_largest_scale_gives_finite_values() -> None:
    parts = {
        "int8": torch.full((2, 2), -128, dtype=torch.int8),
        "scale": torch.full((2, 1), MAX_SCALE),
    }
    assert bool(unpack(parts, (2, 2), Packing.INT8).isfinite().all())
