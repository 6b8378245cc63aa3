"""Rows and columns that stand in both tensors are found, by nothing but fingerprints."""

import pytest
import torch

from offsite.emulator.verbatim import fingerprint, verbatim_elements

BASE = torch.randn(40, 24, generator=torch.Generator().manual_seed(2))


def by_hand(weight: torch.Tensor, base: torch.Tensor) -> int:
    """Every row and every column compared with all others, number by number."""
    count = torch.zeros(weight.shape, dtype=torch.bool)
    for i, row in enumerate(weight):
        count[i] |= any(row.shape == other.shape and torch.equal(row, other) for other in base)
    for j, column in enumerate(weight.T):
        count[:, j] |= any(
            column.shape == other.shape and torch.equal(column, other) for other in base.T
        )
    return int(count.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("orientation", ["as it is", "transposed"])
def test_what_is_found_is_what_a_comparison_finds(dtype: torch.dtype, orientation: str) -> None:
    base = (BASE if orientation == "as it is" else BASE.T).to(dtype).contiguous()
    some_rows, some_columns = base[3:9].clone(), base[:, [1, 5, 7]].clone()
    both = base.clone()
    both[2, :4] += 1
    for weight in (base, some_rows, some_columns, both, base.flip(0), base + 1, base[:, 1:3] * 2):
        assert verbatim_elements(weight, fingerprint(base)) == by_hand(weight, base)


def test_one_bit_is_enough_to_differ() -> None:
    changed = BASE.clone()
    changed.view(torch.int32)[7, 7] ^= 1
    assert verbatim_elements(changed, fingerprint(BASE)) == BASE.numel() - 1
    assert verbatim_elements(torch.zeros(3, 24), fingerprint(-torch.zeros(3, 24))) == 0


def test_a_vector_counts_whole() -> None:
    vector = BASE[0]
    assert verbatim_elements(vector, fingerprint(vector.clone())) == 24
    other = vector.clone()
    other[3] = 0
    assert verbatim_elements(other, fingerprint(vector)) == 0


def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fingerprint(BASE)
    monkeypatch.setattr("offsite.emulator.verbatim._AT_ONCE", 50)
    parts = fingerprint(BASE)
    assert torch.equal(whole.rows, parts.rows) and torch.equal(whole.columns, parts.columns)
