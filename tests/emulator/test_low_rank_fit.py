"""The weighed low-rank form, against the SVD of the densely whitened weight."""

from itertools import product

import pytest
import torch

from offsite.emulator.methods.low_rank_fit import spectrum_by_inputs, spectrum_by_outputs
from offsite.emulator.methods.rank_choice import Options, choose_ranks

SHAPES = pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)], ids=str)


def sample(outputs: int, inputs: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and inputs with directions of very different size, fp64."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -3, inputs, dtype=torch.float64)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    rows = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) * scale @ mix
    return weight, rows


@SHAPES
@pytest.mark.parametrize("rank", [1, 4, 11])
def test_error_is_the_optimum(shape: tuple[int, int], rank: int) -> None:
    """What is left of W·S after its r largest singular values, by Eckart and Young."""
    weight, rows = sample(*shape, tokens=100)
    moment = rows.T @ rows
    spectrum = spectrum_by_inputs(weight, moment)
    down, up = spectrum.low_rank(weight, rank)
    assert down.shape == (rank, shape[1]) and up.shape == (shape[0], rank)
    values = torch.linalg.svdvals(weight @ torch.linalg.cholesky(moment))
    error = ((weight - up @ down) @ rows.T).square().sum()
    assert error.item() == pytest.approx(values[rank:].square().sum().item(), rel=1e-9)
    assert torch.allclose(spectrum.energy, values.square(), rtol=1e-9)
    plain = torch.linalg.svd(weight)  # the best of the weight alone is worse
    cut = plain.U[:, :rank] * plain.S[:rank] @ plain.Vh[:rank]
    assert error < ((weight - cut) @ rows.T).square().sum()


@SHAPES
def test_moment_of_the_outputs_gives_the_same(shape: tuple[int, int]) -> None:
    weight, rows = sample(*shape, tokens=100)
    if shape[0] > shape[1]:
        return  # more outputs than inputs are never asked for in this way
    outputs = rows @ weight.T
    by_outputs = spectrum_by_outputs(outputs.T @ outputs).low_rank(weight, 4)
    by_inputs = spectrum_by_inputs(weight, rows.T @ rows).low_rank(weight, 4)
    torch.testing.assert_close(by_outputs[1] @ by_outputs[0], by_inputs[1] @ by_inputs[0])


@SHAPES
def test_fewer_tokens_than_channels(shape: tuple[int, int]) -> None:
    """A singular moment: every token is reproduced as soon as the rank reaches their number."""
    weight, rows = sample(*shape, tokens=5)
    spectrum = spectrum_by_inputs(weight, rows.T @ rows)
    identity = torch.eye(shape[0], shape[0])[: len(spectrum.energy), : len(spectrum.energy)]
    torch.testing.assert_close(spectrum.directions.T @ spectrum.directions, identity.double())
    down, up = spectrum.low_rank(weight, 5)
    torch.testing.assert_close(up @ down @ rows.T, weight @ rows.T)
    assert all(torch.isfinite(part).all() for part in (down, up))


def test_no_inputs_at_all_is_finite() -> None:
    weight, _ = sample(12, 20, tokens=1)
    down, up = spectrum_by_inputs(torch.zeros_like(weight), torch.zeros(20, 20)).low_rank(
        torch.zeros_like(weight), 3
    )
    assert torch.equal(up @ down, torch.zeros_like(weight))


def test_choice_is_the_best_of_all_ranks() -> None:
    """Against every combination, for layers of one size, below the price of a dense one."""
    generator = torch.Generator().manual_seed(2)
    options = Options.of(128, 128)  # ranks 8 to 56, 2048 parameters a step
    losses = {}
    for path, fall in zip("abc", (-0.5, -1.0, -2.0), strict=True):
        energy = torch.logspace(0, fall, 128, dtype=torch.float64)
        energy *= 1 + 0.1 * torch.rand(128, generator=generator, dtype=torch.float64)
        losses[path] = options.losses(energy.sort(descending=True).values, 1.0)
    for steps in range(7):
        ranks = choose_ranks(dict.fromkeys("abc", options), losses, (3 + steps) * 2048 + 1000)
        forms = [options.ranks.index(ranks[path]) for path in "abc"]
        assert sum(forms) == steps
        best = min(
            sum(losses[path][form] for path, form in zip("abc", combination, strict=True))
            for combination in product(range(7), repeat=3)
            if sum(combination) <= steps
        )
        found = sum(losses[path][form] for path, form in zip("abc", forms, strict=True))
        assert found == pytest.approx(best)


def test_budget_for_everything_keeps_everything() -> None:
    options = dict.fromkeys("abc", Options.of(64, 64))
    losses = {path: options[path].losses(torch.ones(64), 1.0) for path in options}
    assert set(choose_ranks(options, losses, 3 * 4096).values()) == {None}
    assert set(choose_ranks(options, losses, 3 * 4096 - 1).values()) == {None, 24}


def test_important_layer_gets_the_ranks() -> None:
    options = {path: Options.of(128, 128) for path in "ab"}
    energy = torch.logspace(0, -2, 128, dtype=torch.float64)
    for first, second in ((1.0, 9.0), (9.0, 1.0)):
        losses = {"a": options["a"].losses(energy, first), "b": options["b"].losses(energy, second)}
        ranks = choose_ranks(options, losses, 16000)
        a, b = (128 if ranks[path] is None else ranks[path] for path in "ab")
        assert (a < b) == (first < second)


def test_losses_leave_the_strongest_direction_out() -> None:
    """The mean of all tokens does not decide how much of the rest is lost."""
    energy = torch.logspace(0, -2, 64, dtype=torch.float64)
    offset = energy.clone()
    offset[0] = 1e6
    options = Options.of(64, 64)
    assert options.losses(energy, 2.0) == pytest.approx(options.losses(offset, 2.0))
    assert options.losses(torch.zeros(64), 2.0) == [0.0] * 4


def test_layer_that_factoring_would_not_shrink_stays_dense() -> None:
    """(16, 16) is as large at rank 8."""
    assert Options.of(16, 16).ranks == (None,)
    assert Options.of(32, 32).ranks == (8, None)
    assert Options.of(32, 32).costs == (512, 1024)
