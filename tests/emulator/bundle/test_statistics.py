"""The figures are right, bounded in what they read, and of the values that an edge tunes on."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from offsite.emulator.bundle.row_reader import RowReader, matrix_shape
from offsite.emulator.bundle.similarity import compare_rows
from offsite.emulator.bundle.statistics import MIN_ROWS, Places, Sampling, Statistics, measure
from offsite.emulator.bundle.tensor_schema import BundleSchema
from offsite.emulator.packing.packing import Packing, pack, unpack
from offsite.emulator.schema import TensorSpec, spec_of, tensors_to_bytes

WHOLE = Sampling(0)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def stored(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    packing: Packing = Packing.NONE,
    axis: int = 1,
) -> tuple[Path, BundleSchema]:
    """A file of tensors, matrices packed, and its schema."""
    emulator = {name: spec_of(tensor) for name, tensor in tensors.items()}
    packed = {
        name: axis
        for name, tensor in tensors.items()
        if packing is not Packing.NONE and tensor.dim() > 1
    }
    parts = {name: tensor for name, tensor in tensors.items() if name not in packed}
    for name in packed:
        for suffix, part in pack(tensors[name], packing, axis).items():
            parts[f"{name}.{suffix}"] = part
    path = folder / "emulator.safetensors"
    path.write_bytes(tensors_to_bytes(parts))
    return path, BundleSchema(emulator, {}, {}, packing, packed)


def measured(
    folder: Path, tensors: Mapping[str, torch.Tensor], sampling: Sampling = WHOLE
) -> Statistics:
    return measure(*stored(folder, tensors), sampling)


@pytest.mark.parametrize("dtype", DTYPES)
def test_figures_are_those_of_the_values(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(70, 33).to(dtype)
    tensor[0, :5] = 0
    tensor[3] = tensor[4]
    found = measured(tmp_path, {"a": tensor}).tensors[0]
    values = tensor.double()
    assert found.rms == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)
    assert found.largest == pytest.approx(values.abs().max().item())
    assert found.zeros == pytest.approx((values == 0).double().mean().item())
    kurtosis = values.pow(4).mean() / values.square().mean() ** 2
    assert found.kurtosis == pytest.approx(kurtosis.item(), rel=1e-4)
    assert found.row_norms == pytest.approx(values.norm(dim=1).numpy(), rel=1e-5)
    assert found.column_norms == pytest.approx(values.norm(dim=0).numpy(), rel=1e-5)
    assert found.repeated == 2
    assert found.vector is None


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_extreme_values_give_finite_figures(tmp_path: Path, factor: float) -> None:
    torch.manual_seed(0)
    found = measured(tmp_path, {"a": torch.randn(40, 40) * factor}).tensors[0]
    assert np.isfinite([found.rms, found.peak, found.kurtosis]).all()
    if factor:
        assert found.kurtosis == pytest.approx(3, abs=0.5)


def test_values_beyond_float32_are_as_large_as_it_goes(tmp_path: Path) -> None:
    found = measured(tmp_path, {"a": torch.full((4, 4), -1e300, dtype=torch.float64)}).tensors[0]
    assert found.largest == pytest.approx(3.4e38, rel=0.01)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [(shape, axis) for shape in ((37, 51), (5, 7, 9)) for axis in range(len(shape))],
)
@pytest.mark.parametrize("packing", [Packing.INT8, Packing.NF4])
def test_packed_rows_are_what_an_edge_unpacks(
    tmp_path: Path, packing: Packing, shape: tuple[int, ...], axis: int
) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(shape)
    path, schema = stored(tmp_path, {"a": tensor}, packing, axis)
    whole = unpack(pack(tensor, packing, axis), shape, packing).flatten(0, -2).numpy()
    rows = np.array([0, 3, 4, 5, 11, len(whole) - 1])
    with RowReader(path, schema) as reader:
        assert np.array_equal(reader.read("a", rows), whole[rows])
        assert np.array_equal(reader.read("a", np.arange(len(whole))), whole)


def test_a_large_file_is_read_in_part_and_the_part_is_the_edges_choice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(4000, 16), "b": torch.randn(1000, 16), "c": torch.randn(16)}
    path, schema = stored(tmp_path, tensors)
    spec = TensorSpec("F32", (4000, 16))
    limit = 20_000
    first, again, other = (Sampling(seed, limit) for seed in (1, 1, 2))
    found = measure(path, schema, first)
    assert found.values == 80_016 and found.values_read <= limit + 2 * MIN_ROWS * 16
    assert {t.name: t.rows_read for t in found.tensors} == {"a": 1000, "b": 256, "c": 1}
    draws = [sampling.rows_of(spec, "a", 80_016) for sampling in (first, again, other)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert (np.diff(draws[0]) > 0).all() and draws[0].max() < 4000
    assert measure(path, schema, Sampling(1, 0)).values_read == 80_016
    assert found.tensors[0].rms == pytest.approx(1.0, abs=0.05)


def test_which_rows_are_compared_is_not_foreseeable(tmp_path: Path) -> None:
    """A copy that stands beside every row which one seed compares is found by another."""
    torch.manual_seed(0)
    tensor = torch.randn(4096, 32)
    tensor[1::2] = torch.randn(32) * torch.rand(2048, 1)
    shares = {
        seed: similarity.copied_share
        for seed in range(4)
        if (
            similarity := measured(tmp_path, {"a": tensor}, Sampling(seed))
            .tensors[0]
            .row_similarity
        )
    }
    assert all(0.35 < share < 0.65 for share in shares.values())
    assert len(set(shares.values())) > 1


def test_blocks_are_the_numbered_list_that_holds_most() -> None:
    large, small = TensorSpec("F32", (64, 64)), TensorSpec("F32", (8, 8))
    places = Places.of(
        {
            "model.layers.0.mlp.experts.3.up.weight": large,
            "model.layers.1.attn.q.weight": large,
            "harmonisers.1.down.weight": TensorSpec("F32", (640, 640)),
            "model.tables.0.weight": small,
        }
    )
    assert places.of_tensor("model.layers.1.attn.q.weight") == (1, "attn.q.weight")
    assert places.of_tensor("model.layers.0.mlp.experts.3.up.weight") == (
        0,
        "mlp.experts.3.up.weight",
    )
    assert places.of_tensor("harmonisers.1.down.weight") == (None, "harmonisers.1.down.weight")
    assert places.of_tensor("model.norm.weight") == (None, "model.norm.weight")


def test_integers_and_empty_tensors_are_named_as_not_measured(tmp_path: Path) -> None:
    tensors = {"i": torch.arange(4), "e": torch.empty(0, 4), "f": torch.ones(3)}
    found = measured(tmp_path, tensors)
    assert found.unmeasured == ("i", "e")
    assert [tensor.name for tensor in found.tensors] == ["f"]


def test_a_vector_is_one_row() -> None:
    assert matrix_shape(TensorSpec("F32", (5,))) == (1, 5)
    assert matrix_shape(TensorSpec("F32", ())) == (1, 1)
    assert matrix_shape(TensorSpec("F32", (2, 3, 4))) == (6, 4)


def test_copies_count_whatever_their_length_and_sign() -> None:
    source = np.random.default_rng(0)
    rows = source.standard_normal((64, 48)).astype(np.float32)
    honest = compare_rows(rows)
    assert honest is not None and honest.copies == 0 and honest.near == 0 and honest.plane < 0.3
    rows[:16] = rows[0] * source.uniform(-3, 3, (16, 1))
    found = compare_rows(rows)
    assert found is not None and found.copies == 16
    rows[:] = rows[:2].T.dot(source.standard_normal((2, 64)).astype(np.float32)).T
    flat = compare_rows(rows)
    assert flat is not None and flat.plane == pytest.approx(1.0, abs=1e-3)
    assert compare_rows(rows[:15]) is None
