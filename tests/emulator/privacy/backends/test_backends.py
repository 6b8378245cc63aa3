"""What every backend has in common, beyond the figures of the matrix."""

import dataclasses

import pytest
import torch
from tests.emulator.conftest import VOCABULARY
from tests.emulator.privacy.backends.cells import (
    BACKENDS,
    UNITS,
    Checkpointing,
    Kind,
    Subject,
    checkpointed,
    clipped,
    make_batch,
    make_subject,
)

from offsite.emulator.privacy.backends.opacus_hooks import OpacusHooks
from offsite.emulator.training.batches import MicroBatch
from offsite.secure.errors import ConfigError

EVERY = pytest.mark.parametrize("backend", BACKENDS)
NO_ROWS = torch.zeros(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject("llama", Kind.LORA)


def summed(
    backend: str, subject: Subject, batch: MicroBatch, units: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(total, norms)."""
    total = torch.zeros(subject.gradients.shape[1])
    with (
        checkpointed(subject.model, Checkpointing.NONE),
        BACKENDS[backend](subject.model, subject.parameters) as ready,
    ):
        return total, ready.clipped_sum_into(batch, units, clip, total)


@EVERY
def test_no_rows_add_nothing(backend: str, subject: Subject) -> None:
    empty = MicroBatch(NO_ROWS.view(0, 8), NO_ROWS, NO_ROWS, NO_ROWS, 0)
    total, norms = summed(backend, subject, empty, NO_ROWS, 1.0)
    assert len(norms) == 0 and not total.any()


@EVERY
def test_a_unit_that_is_not_finite_adds_nothing_and_disturbs_nobody(
    backend: str, subject: Subject
) -> None:
    batch = make_batch(VOCABULARY - 1)
    ids = batch.ids.clone()
    ids[UNITS == 3, 0] = VOCABULARY - 1
    batch = dataclasses.replace(batch, ids=ids)
    clip = float(subject.gradients.norm(dim=1).median())
    embedding = subject.model.get_input_embeddings().weight
    others = clipped(finite_gradients(subject, batch, UNITS != 3), clip)
    kept = embedding[VOCABULARY - 1].clone()
    embedding[VOCABULARY - 1] = torch.nan
    total, norms = summed(backend, subject, batch, UNITS, clip)
    embedding[VOCABULARY - 1] = kept
    assert norms.isfinite().tolist() == [True, True, True, False, True]
    torch.testing.assert_close(total.double(), others, rtol=0, atol=1e-6 * clip)


def finite_gradients(subject: Subject, batch: MicroBatch, rows: torch.Tensor) -> torch.Tensor:
    from tests.emulator.privacy.backends.cells import exact_gradients

    every = exact_gradients(subject.model, subject.parameters, batch, UNITS)
    return every[UNITS[rows].unique()]


@EVERY
def test_what_trains_and_is_not_named_is_an_error(backend: str, subject: Subject) -> None:
    stranger = subject.model.get_input_embeddings().weight
    stranger.requires_grad_(True)
    try:
        with pytest.raises(ConfigError, match="embed_tokens"):
            summed(backend, subject, make_batch(), UNITS, 1.0)
    finally:
        stranger.requires_grad_(False)


@EVERY
def test_what_is_named_and_does_not_train_is_an_error(backend: str, subject: Subject) -> None:
    frozen = subject.model.get_input_embeddings().weight
    named = {**subject.parameters, "embedding": frozen}
    with pytest.raises(ConfigError), BACKENDS[backend](subject.model, named):
        pass


@EVERY
def test_a_parameter_of_another_model_is_an_error(backend: str, subject: Subject) -> None:
    named = {**subject.parameters, "stranger": torch.nn.Parameter(torch.zeros(2))}
    with pytest.raises(ConfigError, match="stranger"), BACKENDS[backend](subject.model, named):
        pass


@EVERY
def test_the_model_is_left_as_it_was(backend: str, subject: Subject) -> None:
    def state() -> list[object]:
        modules = [sorted(vars(module)) for module in subject.model.modules()]
        hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in subject.model.modules()]
        attributes = [sorted(vars(parameter)) for parameter in subject.model.parameters()]
        return [modules, hooks, attributes, subject.model.config.to_dict()]

    before = state()
    summed(backend, subject, make_batch(), UNITS, 1.0)
    assert state() == before
    assert all(parameter.grad is None for parameter in subject.model.parameters())


@EVERY
def test_sums_are_added_to_what_is_there(backend: str, subject: Subject) -> None:
    clip = float(subject.gradients.norm(dim=1).median())
    once, _ = summed(backend, subject, make_batch(), UNITS, clip)
    with (
        checkpointed(subject.model, Checkpointing.NONE),
        BACKENDS[backend](subject.model, subject.parameters) as ready,
    ):
        total = torch.ones_like(once)
        ready.clipped_sum_into(make_batch(), UNITS, clip, total)
        ready.clipped_sum_into(make_batch(), UNITS, clip, total)
    torch.testing.assert_close(total, 1 + 2 * once, rtol=0, atol=1e-5 * clip)


def test_one_unit_adds_the_same_bits_in_any_company(subject: Subject) -> None:
    """Batch of one: padding and neighbours do not reach it."""
    batch, clip = make_batch(), 1.0
    alone = dataclasses.replace(
        batch,
        ids=batch.ids[5:],
        rows=batch.rows[batch.rows == 5] - 5,
        columns=batch.columns[batch.rows == 5],
        targets=batch.targets[batch.rows == 5],
    )
    by_itself, _ = summed("one_by_one", subject, alone, torch.tensor([0]), clip)
    with_all, _ = summed("one_by_one", subject, batch, torch.tensor([1, 2, 3, 4, 5, 0]), clip)
    first, _ = summed("one_by_one", subject, batch, torch.zeros(6, dtype=torch.int64), clip)
    assert by_itself.any() and not torch.equal(with_all, first)
    others = dataclasses.replace(alone, ids=torch.nn.functional.pad(alone.ids, (0, 9)))
    assert torch.equal(summed("one_by_one", subject, others, torch.tensor([0]), clip)[0], by_itself)


def test_opacus_without_training_mode_is_an_error(subject: Subject) -> None:
    subject.model.eval()
    try:
        with pytest.raises(ConfigError, match="training mode"):
            summed("opacus", subject, make_batch(), UNITS, 1.0)
    finally:
        subject.model.train()


def test_opacus_outside_its_context_is_an_error(subject: Subject) -> None:
    total = torch.zeros(subject.gradients.shape[1])
    with pytest.raises(ConfigError, match="context"):
        OpacusHooks(subject.model, subject.parameters).clipped_sum_into(
            make_batch(), UNITS, 1.0, total
        )
    assert not total.any()


def test_opacus_is_refused_where_a_module_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run sees the batch and one a single row: rows and sums look right, and are not."""
    subject = make_subject("llama", Kind.LORA)
    mlp = subject.model.model.layers[0].mlp
    once = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda hidden: once(hidden) + once(hidden[:1]))
    with pytest.raises(ConfigError, match="run once, found 2 runs"):
        summed("opacus", subject, make_batch(), UNITS, 1.0)


def test_opacus_is_refused_where_its_gradients_are_not_those_of_autograd(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opacus.grad_sample import GradSampleHooks

    samplers = GradSampleHooks.GRAD_SAMPLERS
    honest = samplers[torch.nn.Linear]

    def off_by_a_percent(*args: object) -> dict[torch.nn.Parameter, torch.Tensor]:
        return {name: 1.01 * rows for name, rows in honest(*args).items()}

    monkeypatch.setitem(samplers, torch.nn.Linear, off_by_a_percent)
    with pytest.raises(ConfigError, match="add up to autograd's"):
        summed("opacus", subject, make_batch(), UNITS, 1.0)
