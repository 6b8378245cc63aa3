"""The traps a to o: what goes silently wrong elsewhere, and does not here.

Where it is cheap a test shows the trap first, so that it keeps its teeth: what the naive way does is
measured, then what ours does. Figures of the naive ways are in `docs/sharp-edges.md`.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.emulator.privacy.backends.cells import (
    BACKENDS,
    Checkpointing,
    Kind,
    Subject,
    checkpointed,
    clipped,
    exact_gradients,
    make_subject,
)
from tests.emulator.privacy.proof.units import packed
from torch import nn

from offsite.emulator.privacy.backends.opacus_hooks import OpacusHooks
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.training.batches import pack
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.logical_batch import LogicalBatch, StepTerms
from offsite.secure.privacy.mechanisms import PoissonGaussian
from offsite.secure.privacy.randomness import goodness
from offsite.secure.privacy.randomness.poisson import PoissonSampler
from offsite.secure.privacy.randomness.source import NoiseSource
from offsite.secure.privacy.units import Unit

ROOT = Path(__file__).parents[4]
CLIP = 1e-3
"""So small that every unit is clipped."""


def example(length: int, learnt: int, seed: int = 0) -> Example:
    """Random tokens of which the last ones are learnt."""
    ids = np.random.default_rng(seed).integers(3, 96, length, dtype=np.int32)
    marks = np.zeros(length, np.bool_)
    marks[-learnt:] = True
    return Example(ids, marks)


LONG_AND_SHORT = [example(33, 32), *(example(2, 1, seed) for seed in range(1, 8))]


@contextmanager
def only(subject: Subject, *parts: str) -> Iterator[dict[str, nn.Parameter]]:
    """Of the adapter no more trains than what has one of these words in its name."""
    chosen = {n: p for n, p in subject.parameters.items() if any(part in n for part in parts)}
    for name, parameter in subject.parameters.items():
        parameter.requires_grad_(name in chosen)
    with checkpointed(subject.model, Checkpointing.NONE):
        yield chosen


def engine_sum(
    subject: Subject, parameters: Mapping[str, nn.Parameter], units: Sequence[Example]
) -> torch.Tensor:
    total = torch.zeros(sum(parameter.numel() for parameter in parameters.values()))
    with PerExampleEngine(subject.model, parameters) as engine:
        for batch, unit in packed([(one,) for one in units]):
            engine.clipped_sum_into(batch, unit, CLIP, total)
    return total


def moved(sums: Sequence[torch.Tensor]) -> float:
    """By how many clip norms."""
    return float((sums[0].double() - sums[1].double()).norm()) / CLIP


# a, b: what stands first is not the batch.


def test_trap_a_flattened_tokens_are_not_units() -> None:
    subject = make_subject("opt", Kind.LORA)
    units = [example(33, 32), example(33, 32, seed=1)]
    with only(subject, "fc1", "fc2") as parameters:
        naive = [opacus_as_it_comes(subject, parameters, some) for some in (units, units[1:])]
        assert moved(naive) > 3  # one unit is many
        with (
            OpacusHooks(subject.model, parameters) as backend,
            pytest.raises(ConfigError, match="2 gradients, one a row, found 64"),
        ):
            total = torch.zeros(len(naive[0]))
            backend.clipped_sum_into(pack(units), torch.arange(2), CLIP, total)
        assert not total.any()
        ours = [engine_sum(subject, parameters, some) for some in (units, units[1:])]
        assert moved(ours) <= 1.0001


def opacus_as_it_comes(
    subject: Subject, parameters: Mapping[str, nn.Parameter], units: Sequence[Example]
) -> torch.Tensor:
    """Every `grad_sample` clipped and added up, with the right loss and no check."""
    from opacus.grad_sample import GradSampleHooks

    batch = pack(units)
    hooks = GradSampleHooks(subject.model, loss_reduction="sum")
    logits = subject.model(input_ids=batch.ids).logits.log_softmax(-1)
    losses = -logits[batch.rows, batch.columns, batch.targets]
    counts = batch.rows.bincount()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (losses / counts[batch.rows]).sum().backward()
    samples = torch.cat([p.grad_sample.flatten(1) for p in parameters.values()], dim=1)
    hooks.cleanup()
    subject.model.zero_grad(set_to_none=True)
    return clipped(samples.double(), CLIP)


def test_trap_b_a_table_that_is_read_once_a_batch_is_refused_or_exact() -> None:
    subject = make_subject("gpt2", Kind.LORA)
    subject.model.requires_grad_(False)
    positions = subject.model.transformer.wpe.weight.requires_grad_(True)
    named, batch, units = {"positions": positions}, pack(LONG_AND_SHORT), torch.arange(8)
    with checkpointed(subject.model, Checkpointing.NONE):
        exact = clipped(exact_gradients(subject.model, named, batch, units), CLIP)
        for backend in ("one_by_one", "vmap"):
            total = torch.zeros(positions.numel())
            with BACKENDS[backend](subject.model, named) as ready:
                ready.clipped_sum_into(batch, units, CLIP, total)
            torch.testing.assert_close(total.double(), exact, rtol=0, atol=1e-6 * CLIP)
        for backend in ("engine", "opacus"):
            total = torch.zeros(positions.numel())
            with (
                pytest.raises(ConfigError, match=r"positions|wpe"),
                BACKENDS[backend](subject.model, named) as ready,
            ):
                ready.clipped_sum_into(batch, units, CLIP, total)
            assert not total.any()


# c: the loss.


def test_trap_c_a_long_unit_changes_no_other() -> None:
    subject = make_subject("llama", Kind.LORA)
    with only(subject, "") as parameters:
        with_it, without_it = LONG_AND_SHORT, LONG_AND_SHORT[1:]
        clip = float(token_mean_gradients(subject, parameters, without_it).norm(dim=1).median())
        naive = [
            clipped(token_mean_gradients(subject, parameters, some), clip) * CLIP / clip
            for some in (with_it, without_it)
        ]
        assert moved(naive) > 1.5
        ours = [engine_sum(subject, parameters, some) for some in (with_it, without_it)]
        assert moved(ours) <= 1.0001


def token_mean_gradients(
    subject: Subject, parameters: Mapping[str, nn.Parameter], units: Sequence[Example]
) -> torch.Tensor:
    """[U, P] of what `labels=` leads to: a mean over the tokens of the batch, times its size."""
    batch = pack(units)
    counts = batch.rows.bincount()[:, None]
    of_means = exact_gradients(subject.model, parameters, batch, torch.arange(len(units)))
    return of_means * counts / counts.sum() * len(units)


# d to h: the batch.


def steps(units: int, rate: Fraction, allowed: int = 1) -> LogicalBatch:
    return LogicalBatch(StepTerms(PoissonSampler(units, rate), 1.0, 1.0), 8, allowed)


def source() -> NoiseSource:
    return NoiseSource(os.urandom(32), b"trap")


def finished(batch: LogicalBatch) -> np.ndarray:
    gradient = np.empty(8, np.float32)
    batch.finish(gradient)
    return gradient


def test_trap_d_an_empty_batch_is_noise_and_a_step() -> None:
    batch = steps(3, Fraction(1, 10**9))
    assert len(batch.begin(source())) == 0
    gradient = finished(batch)
    assert np.count_nonzero(gradient) == 8 and batch.finished_steps == 1


def test_trap_e_nothing_takes_the_place_of_an_empty_batch() -> None:
    sampler = PoissonSampler(8, Fraction(1, 8))
    empty = sum(not len(sampler.draw(source().sampling())) for _ in range(2000))
    assert goodness.rates(np.array([empty]), 2000, (7 / 8) ** 8).passed


def test_trap_f_the_first_batch_may_be_empty() -> None:
    """No collation learns its shapes from a batch that came before."""
    assert list(packed([])) == []
    batch = steps(3, Fraction(1, 10**9), allowed=2)
    for _ in range(2):
        assert len(batch.begin(source())) == 0
        finished(batch)


def test_trap_g_empty_batches_are_steps_like_any_other() -> None:
    batch, sizes = steps(4, Fraction(1, 4), allowed=200), []
    for _ in range(200):
        drawn = batch.begin(source())
        sizes.append(len(drawn))
        batch.add(drawn, lambda total: np.zeros(sizes[-1]))
        finished(batch)
    assert batch.begun_steps == batch.finished_steps == 200
    assert sizes.count(0) > 20
    with pytest.raises(PolicyError, match="200 steps that were claimed"):
        batch.begin(source())


def test_trap_h_nothing_of_a_batch_that_was_left_joins_the_next() -> None:
    batch = steps(3, Fraction(1), allowed=2)

    def half(total: np.ndarray) -> np.ndarray:
        total += 1e6
        return np.array([1e6])

    batch.begin(source())
    batch.add(np.array([0]), half)
    with pytest.raises(PolicyError, match="is open"):
        batch.begin(source())
    with pytest.raises(PolicyError, match="some are missing"):
        finished(batch)
    batch.abandon()
    drawn = batch.begin(source())
    batch.add(drawn, lambda total: np.zeros(3))
    assert np.abs(finished(batch)).max() < 100
    with pytest.raises(PolicyError, match="is closed"):
        finished(batch)


# i, j: a clip norm that moves.


def test_traps_i_and_j_the_clip_norm_does_not_move() -> None:
    terms = steps(3, Fraction(1)).terms
    with pytest.raises(dataclasses.FrozenInstanceError):
        terms.clip_norm = 0.5  # type: ignore[misc]


# k: randomness.


@pytest.mark.parametrize(
    "seed",
    [0, 2**63, "seed", bytes(32), b"x" * 32, bytes(range(32)), torch.Generator(), None],
    ids=lambda seed: type(seed).__name__,
)
def test_trap_k_a_seed_is_an_error(seed: object) -> None:
    with pytest.raises(PolicyError):
        NoiseSource(seed, b"trap")  # type: ignore[arg-type]


# l, m: accountants.


def test_trap_l_what_the_gdp_accountant_takes_for_8_is_10() -> None:
    from opacus.accountants.analysis.gdp import compute_eps_poisson

    asked = compute_eps_poisson(steps=30, noise_multiplier=0.656, sample_rate=0.1, delta=1e-5)
    assert asked < 8.05
    spent = epsilon_of([PoissonGaussian(0.656, Fraction(1, 10), 30, Unit.RECORD)], 1e-5)
    assert spent.pld > 10


def test_trap_m_histories_of_nothing_and_of_two_kinds_have_an_epsilon() -> None:
    nothing = epsilon_of([], 1e-5)
    assert nothing.pld == nothing.prv == nothing.rdp == 0
    first = PoissonGaussian(1.0, Fraction(1, 10), 3, Unit.RECORD)
    second = PoissonGaussian(2.0, Fraction(1, 5), 2, Unit.RECORD)
    both = epsilon_of([first, second], 1e-5).pld
    assert epsilon_of([first], 1e-5).pld < both < both + 1


# n, o: files and numbers.


def test_trap_n_nothing_of_opacus_but_its_hooks_is_used() -> None:
    """Not its `load_checkpoint`, which unpickles, its loaders, optimisers or accountants."""
    imports = {
        (path.name, line.strip())
        for path in ROOT.glob("*/offsite/**/*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) opacus\b", line)
    }
    assert imports == {
        ("opacus_hooks.py", "from opacus.grad_sample import GradSampleHooks"),
    }


def test_trap_o_an_epoch_is_as_many_steps_as_there_are() -> None:
    """`int(1 / q)` of a float q loses one of 93 steps; q is a fraction and steps are counted."""
    lost = [n for n in range(1, 2000) if int(1 / (1 / n)) != n]
    assert 93 in lost
    for n in lost:
        terms = steps(n, Fraction(1, n)).terms
        assert terms.expected_units == 1
        event = PoissonGaussian(1.0, terms.sampler.sampling, n, Unit.RECORD)
        assert (event.to_json()["sampling"], event.to_json()["steps"]) == (f"1/{n}", n)
