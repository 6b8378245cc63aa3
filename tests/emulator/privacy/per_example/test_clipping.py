"""Norms of long vectors keep their digits, and a unit that is not finite adds nothing."""

import pytest
import torch

from offsite.emulator.privacy.per_example.clipping import BLOCK, add_clipped, norms_of


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 7])
def test_norms_are_euclidean(size: int) -> None:
    gradients = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        norms_of(gradients), gradients.double().norm(dim=1), rtol=1e-7, atol=0
    )


def test_the_norm_of_a_long_gradient_is_not_too_small() -> None:
    """A plain fp32 norm of so many values loses 1 in 10,000: more than the proof allows."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(1, 6_000_000, generator=generator)
    exact = gradients.double().norm(dim=1)
    assert abs(float(torch.linalg.vector_norm(gradients, dim=1).double() / exact) - 1) > 1e-5
    torch.testing.assert_close(norms_of(gradients), exact, rtol=1e-7, atol=0)
    total = torch.zeros(gradients.shape[1])
    add_clipped(gradients, 1.0, total)
    assert abs(float(total.double().norm()) - 1) < 1e-6


def test_units_keep_at_most_the_clip_norm() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    total = torch.ones(2)
    norms = add_clipped(gradients.clone(), 1.0, total)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5, 0.0]))
    torch.testing.assert_close(total, torch.tensor([1 + 0.6 + 0.3, 1 + 0.8 + 0.4]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_unit_that_is_not_finite_adds_nothing(value: float) -> None:
    gradients = torch.tensor([[value, 3e38], [3.0, 4.0]])
    total = torch.zeros(2)
    norms = add_clipped(gradients, 1.0, total)
    torch.testing.assert_close(total, torch.tensor([0.6, 0.8]))
    assert norms.isfinite().tolist() == [False, True]
